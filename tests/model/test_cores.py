import sys
from pathlib import Path

import pytest

from model.cores import _quota


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("50000 100000\n", 1),
        ("max 100000\n", sys.maxsize),
        ("", sys.maxsize),
    ],
)
def test_a_containers_cpu_quota_counts_as_its_cores(tmp_path: Path, text: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert _quota(file) == cores
    assert _quota(tmp_path / "none") == sys.maxsize
