"""`nsnet detect`, mostly in this process: it knows TINY."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cli.detect
from app.decoding.pool import Decoders
from cli.main import main
from model.detector import Detector
from model.errors import ImageError
from model.images import Limits, decode
from model.network import NSNetConfig
from tests.app.provenance.files import sourced, with_metadata
from tests.cli.conftest import ROOT, Here
from tests.conftest import CPU, TINY
from tests.images import jpeg

ODD_NAMES = (
    b"[bold]brackets[.jpg",
    b"\xff\xfe.jpg",
    b"line\nfeed \x1b[31m.jpg",
    "日本.jpg".encode(),
)


@pytest.fixture
def config() -> NSNetConfig:
    return NSNetConfig(backbone=TINY, features="joint", hidden=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of odd names, and what only looks as if it were one."""
    folder = tmp_path / "album"
    (folder / "deep" / "er").mkdir(parents=True)
    for name in (*ODD_NAMES, b"deep/er/a.JPEG", b".hidden.jpg", b"deep/.hidden/b.jpg"):
        path = Path(os.fsdecode(bytes(folder) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(100, 120))
    (folder / "broken.png").write_bytes(b"no image")
    with (folder / "film.mp4").open("wb") as film:
        film.truncate(5 << 30)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "deep" / "back").symlink_to("..")
    return folder


def answers(output: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines()]
    paths = [line.pop("path") for line in lines]
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, lines, strict=True))


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
def test_of_a_folder_the_images_are_scored_whatever_their_names(here: Here, folder: Path) -> None:
    status, shown, told = here("detect", "--json", str(folder))
    assert (status, told) == (1, "")  # one is broken
    found = answers(shown)
    broken = found.pop(str(folder / "broken.png"))
    good = {Path(os.fsdecode(bytes(folder) + b"/" + name)) for name in ODD_NAMES}
    assert {Path(path) for path in found} == good | {folder / "deep/er/a.JPEG"}
    for answer in found.values():
        assert answer.keys() == {"verdict", "score", "looks", "warnings", "provenance"}
        assert answer["provenance"]["declares"] == "nothing"
        assert 0 < answer["score"] < 1
    with pytest.raises(ImageError) as refusal:
        decode(b"no image")
    assert broken == {"error": str(refusal.value), "code": "unsupported_media_type"}


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
def test_what_is_no_image_file_is_told_and_the_next_one_scored(
    here: Here, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "-"
    image.write_bytes(jpeg(100, 120))
    pipe, film = folder / "pipe.jpg", folder / "film.mp4"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(jpeg(100, 120))))
    names = [pipe, film, "http://[::1]/a.jpg", tmp_path / "none.jpg", "-", image]
    status, shown, told = here("detect", *map(str, names))
    assert (status, told) == (1, "")
    lines = shown.splitlines()
    expected = [
        f"{pipe}: It is a pipe: pipe it into `nsnet detect -`.",
        f"{film}: One image may have 33554432 bytes at most.",
        "http://[::1]/a.jpg: URLs are not fetched: download the image first.",
        f"{tmp_path}/none.jpg: The file cannot be read: No such file or directory.",
    ]
    assert lines[:4] == [f"error         -      {text}" for text in expected]
    assert [line.split()[2] for line in lines[4:]] == ["-", str(image)]
    assert lines[4].split()[:2] == lines[5].split()[:2]  # the same picture


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "It is not a regular file."),
        ("x" * 300, "The file cannot be read: File name too long."),
    ],
)
def test_a_name_that_no_file_can_have_is_told_and_the_next_one_scored(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    """An empty one, as of a variable that is not set, is not the folder one is in."""
    monkeypatch.chdir(tmp_path)
    for image in ("a.jpg", "b.jpg"):
        Path(image).write_bytes(jpeg(100, 120))
    status, shown, told = here("detect", "--json", name, "a.jpg")
    assert (status, told) == (1, "")
    found = answers(shown)
    assert found.keys() == {name, "a.jpg"}
    assert found[name] == {"error": why, "code": "unreadable"}


@pytest.mark.usefixtures("tiny")
def test_all_scored_is_success(here: Here, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.jpg" for name in "ab"]
    for path in paths:
        path.write_bytes(jpeg(100, 120))
    status, shown, _ = here("detect", *map(str, paths))
    assert status == 0
    for path, line in zip(paths, shown.splitlines(), strict=True):
        verdict, score, name, *_ = line.split()
        assert verdict in ("real", "ai_generated", "uncertain")
        assert 0 < float(score) < 1
        assert name == str(path)


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
def test_what_a_file_declares_is_told_where_it_declares_anything(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, declared = tmp_path / "a.jpg", tmp_path / "b.png"
    plain.write_bytes(jpeg(100, 120))
    declared.write_bytes(with_metadata("PNG", xmp=sourced()))
    _, shown, _ = here("detect", str(plain), str(declared))
    first, second = shown.splitlines()
    assert "  declares " not in first
    assert second.endswith("  declares ai_generated")
    _, shown, _ = here("detect", "--json", str(declared))
    assert answers(shown)[str(declared)]["provenance"]["declares"] == "ai_generated"
    monkeypatch.setenv("NSNET_PROVENANCE", "false")
    _, shown, _ = here("detect", "--json", str(declared))
    assert answers(shown)[str(declared)]["provenance"] is None


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
def test_a_bug_ends_one_image_and_not_the_run(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(100, 120))
    faults: Iterator[BaseException | None] = iter((RuntimeError("secret"), MemoryError(), None))
    inspect = Decoders.inspect

    def faulty(decoders: Decoders, parts: list[bytes], limits: Limits) -> Any:
        if fault := next(faults):
            raise fault
        return inspect(decoders, parts, limits)

    monkeypatch.setattr(Decoders, "inspect", faulty)
    status, shown, _ = here("detect", *(str(tmp_path / f"{name}.jpg") for name in "abc"))
    assert status == 1
    first, second, third = shown.splitlines()
    assert first.endswith("a.jpg: The image could not be handled: RuntimeError.")
    assert second.endswith("b.jpg: The image could not be handled: MemoryError.")
    assert not third.startswith("error")


@pytest.mark.process
@pytest.mark.usefixtures("tiny")
def test_a_score_is_the_detectors(here: Here, tmp_path: Path) -> None:
    """What another process decodes is what this one would."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(100, 120))
    _, shown, _ = here("detect", "--json", str(path))
    detector = Detector.load(
        Path(os.environ["NSNET_CHECKPOINT"]),
        runtime=CPU,
        backbone=Path(os.environ["NSNET_BACKBONE"]),
    )
    [expected] = detector.detect([decode(path.read_bytes()).pixels])
    assert json.loads(shown)["score"] == pytest.approx(expected.score, abs=1e-6)


@pytest.mark.usefixtures("tiny")
def test_another_tower_than_was_asked_for_is_refused(
    here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSNET_BACKBONE_SHA256", "0" * 64)
    status, shown, told = here("detect", str(folder))
    assert (status, shown) == (1, "")
    assert "is another tower than was asked for" in told
    assert len(told.splitlines()) == 1


# --- the command around it ----------------------------------------------------------------------

Score = Callable[[str], dict[str, Any]]
GOOD = {"verdict": "real", "score": 0.1, "looks": 1, "warnings": ["animation", "few_patches"]}


def use(monkeypatch: pytest.MonkeyPatch, score: Score) -> None:
    """Take this instead of a network."""

    @contextlib.contextmanager
    def scorer(_: object, **__: bool) -> Iterator[Score]:
        yield score

    monkeypatch.setattr(cli.detect, "_scorer", scorer)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_is_out_before_the_next_image_is_read(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"  # a file, which is as little a terminal as a pipe is
    lines: list[int] = []

    def score(_: str) -> dict[str, Any]:
        lines.append(len(out.read_text().splitlines()))
        return GOOD

    use(monkeypatch, score)
    monkeypatch.setattr("sys.argv", ["nsnet", "detect", *options, "a", "b", "c"])
    with out.open("w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    assert lines == [0, 1, 2]


def test_a_folder_of_thousands_is_taken_in_order(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / f"{number:04}.jpg") for number in range(3000)]
    for name in names:
        Path(name).touch()
    use(monkeypatch, lambda _: GOOD)
    status, shown, _ = here("detect", str(tmp_path))
    assert status == 0
    assert [line.split() for line in shown.splitlines()] == [
        ["real", "0.100", name, "animation", "few_patches"] for name in names
    ]


@pytest.mark.parametrize(
    "name", ["[bold]x", "a\nb", "\x1b[31mred", "\udcff", "\u202etfel", "日本.jpg"]
)
def test_a_name_is_one_line_and_nothing_but_a_name(
    name: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, lambda _: {"error": "No.", "code": "unreadable"})
    status, shown, _ = here("detect", name)
    assert status == 1
    [line] = shown.splitlines()
    assert line.isprintable()
    told = line.removeprefix("error         -      ").removesuffix(": No.")
    assert told.encode().decode("unicode_escape" if "\\" in told else "utf-8") == name
    status, shown, _ = here("detect", "--json", name)
    assert json.loads(shown) == {"path": name, "error": "No.", "code": "unreadable"}


@pytest.mark.parametrize(
    "said",
    [
        {"error": "\x1b[2J\nreal", "code": "unreadable"},
        GOOD | {"verdict": "\x1b[2J\nreal"},
        GOOD | {"warnings": ["\x1b[2J\nreal"]},
        GOOD | {"provenance": {"declares": "\x1b[2J\nreal"}},
    ],
    ids=["error", "verdict", "warning", "declaration"],
)
def test_what_is_said_of_an_image_is_one_line(
    said: dict[str, Any], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, lambda _: said)
    [line] = here("detect", "a.jpg")[1].splitlines()
    assert line.isprintable()


def test_a_folder_that_cannot_be_listed_is_told(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr(cli.detect, "_scorer", real_reader)
    scandir = os.scandir

    def listing(path: str) -> Any:  # permissions do not stop root
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)
    status, shown, _ = here("detect", str(tmp_path))
    assert status == 1
    first, second = shown.splitlines()
    assert first.startswith("real")
    assert second == f"error         -      {closed}: The folder cannot be listed."


@contextlib.contextmanager
def real_reader(_: object, **__: bool) -> Iterator[Score]:
    """Files are read, and called real."""

    def score(name: str) -> dict[str, Any]:
        try:
            cli.detect._read(name, Limits())
        except ImageError as error:
            return {"error": str(error), "code": error.code}
        return GOOD

    yield score


@pytest.mark.parametrize("paths", [["{empty}"], ["{empty}", "{empty}/."]])
def test_folders_without_images_are_a_mistake(paths: list[str], here: Here, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    status, shown, told = here("detect", *(path.format(empty=tmp_path) for path in paths))
    assert (status, shown) == (1, "")
    assert told.startswith(f"nsnet: no images in {tmp_path}")
    assert len(told.splitlines()) == 1


def test_nothing_on_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ImageError, match="standard input"):
        cli.detect._read("-", Limits())


ENDLESS = """
import contextlib, sys, time
import cli.detect
from cli.main import main

@contextlib.contextmanager
def scorer(_, *, explain):
    def score(name):
        if sys.argv[-1] == "wait" and name == "wait":
            time.sleep(100)
        return {"verdict": "real", "score": 0.5, "looks": 1, "warnings": []}
    yield score

cli.detect._scorer = scorer
cli.detect._names = lambda paths: ["first"] + (10**6 * ["more"] if paths[-1] == "many" else paths)
main()
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_ends_it_without_a_word(options: list[str]) -> None:
    process = started("detect", *options, "many")
    assert "first" in first_line(process)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


@pytest.mark.process
def test_an_interrupt_ends_it_without_a_traceback() -> None:
    process = started("detect", "wait")
    assert "first" in first_line(process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told


def test_broken_credentials_are_told_in_the_line() -> None:
    answer = {"verdict": "real", "score": 0.1, "warnings": []}
    broken = {"declares": "nothing", "c2pa": {"status": "invalid"}}
    assert cli.detect._line("a", answer | {"provenance": broken}).endswith("credentials invalid")
    assert cli.detect._line("a", answer | {"provenance": None}).endswith("a")
