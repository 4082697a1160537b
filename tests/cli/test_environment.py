import io
import re

import pytest
from rich.table import Table

from cli.environment import show, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photo of 2026.jpg", "photo of 2026.jpg"),
        ("[bold]日本", "[bold]日本"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\udcff", r"\udcff"),
        ("\u202e", r"\u202e"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_no_cell_of_a_table_is_cut(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    word = "".join(chr(ord("A") + number) for number in range(26)) * 4
    table = Table("name", "value")
    table.add_row("x", word)
    show(table)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    if out.isatty():
        cells = (line.split("│")[2].strip() for line in lines if line.startswith("│"))
        assert "".join(cells) == word
        assert max(map(len, lines)) <= 40
    else:
        assert any(word in line for line in lines)
