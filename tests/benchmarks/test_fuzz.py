"""Files of every format, mutants of them, and what is said of a decoder and of a server."""

import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz
from benchmarks.memory import resident
from benchmarks.mutants import GRAMMARS, Mutants, Original, Part, originals
from benchmarks.specimens import SPECIMENS, Tiff, samples
from model.images import FORMATS, Limits, Picture, decode

ROOT = Path(__file__).parent.parent.parent
FAST = [one for one in SPECIMENS if one.format in ("PNG", "GIF", "TIFF", "BMP", "JPEG")]


@pytest.fixture(scope="module")
def files() -> list[Original]:
    return originals()


def test_there_are_specimens_of_every_format_and_all_are_read(files: list[Original]) -> None:
    assert {file.format for file in files} == {row.name for row in FORMATS} == GRAMMARS.keys()
    assert len({file.name for file in files}) == len(files)
    for file in files:
        facts = decode(file.data).facts
        width, height = map(int, file.name.rpartition(" ")[2].split("x"))
        assert facts.format == ("MPO" if "MPO" in file.name else file.format), file.name
        if "turned" in file.name:
            assert {facts.width, facts.height} == {width, height}, file.name
        else:
            assert (facts.width, facts.height) == (width, height), file.name


def test_a_specimen_is_the_same_file_always() -> None:
    for one in FAST:
        assert one.make(34, 18) == one.make(34, 18), one
    sequence = next(one for one in SPECIMENS if str(one) == "AVIF sequence").make(64, 48)
    for box in (b"mvhd", b"tkhd", b"mdhd"):  # when it was written
        assert re.search(box + rb"\x01.{3}\0{16}", sequence, re.DOTALL)


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
@pytest.mark.parametrize(
    "plain", [Tiff(1, 1), Tiff(1, 1, tile=16), Tiff(1, 1, deflated=True), Tiff(1, 1, big=True)]
)
def test_a_tiff_made_by_hand_has_its_pixels(bits: int, plain: Tiff) -> None:
    made = replace(plain, bits=bits)(34, 50)
    grey = samples(34, 50, 1)[..., 0] >> (8 - min(bits, 8))
    expected = grey * (255 // ((1 << min(bits, 8)) - 1))
    assert np.array_equal(decode(made).pixels[..., 0], expected)


def test_a_file_taken_apart_is_put_together_again(files: list[Original]) -> None:
    for file in files:
        grammar = GRAMMARS[file.format]
        again = grammar.join(grammar.split(file.data))
        if file.format == "TIFF":  # its directories are written behind it
            assert np.array_equal(decode(again).pixels, decode(file.data).pixels), file.name
        else:
            assert again == file.data, file.name


@pytest.mark.parametrize("format_", ["AVIF", "HEIF"])
def test_boxes_that_grow_leave_the_pixels_where_they_are(
    files: list[Original], format_: str
) -> None:
    file = next(file for file in files if file.format == format_)
    grammar = GRAMMARS[format_]
    parts = grammar.split(file.data)
    meta = next(part for part in parts if part.kind == b"meta")
    meta.parts.append(Part(b"free", bytearray(1000)))
    larger = grammar.join(parts)
    assert len(larger) > len(file.data) + 1000
    assert np.array_equal(decode(larger).pixels, decode(file.data).pixels)


def test_a_number_and_a_seed_make_the_same_mutant(files: list[Original]) -> None:
    mutants, again, other = Mutants(files, 1), Mutants(files, 1), Mutants(files, 2)
    last = again[99]  # whatever was asked for before
    made = [mutants[number] for number in range(100)]
    assert made[99] == last
    assert made[:99] == [again[number] for number in range(99)]
    assert sum(made[number] == other[number] for number in range(100)) < 5
    assert len({mutant.format for mutant in made}) == len(GRAMMARS)


def chunks_of(png: bytes) -> Iterator[bool]:
    """Whether each chunk has its checksum."""
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        end = at + 8 + length
        yield zlib.crc32(png[at + 4 : end]).to_bytes(4) == png[end : end + 4]
        at = end + 4


def whole_riff(webp: bytes) -> bool:
    return int.from_bytes(webp[4:8], "little") == len(webp) - 8


def whole_boxes(data: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        at += int.from_bytes(data[at : at + 4]) or len(data) + 1
    return at == len(data)


WHOLE = {
    "PNG": lambda data: all(chunks_of(data)),
    "WEBP": whole_riff,
    "AVIF": whole_boxes,
    "HEIF": whole_boxes,
}


@pytest.mark.parametrize("format_", WHOLE)
def test_half_of_the_mutants_keep_lengths_and_checksums(
    files: list[Original], format_: str
) -> None:
    kin = [file for file in files if file.format == format_]
    mutants, whole = Mutants(kin, 0), WHOLE[format_]
    known = {file.data for file in kin}
    structured = [mutants[number].data for number in range(1, 200, 2)]
    assert sum(map(whole, structured)) >= 85  # a few are cut off all the same
    assert sum(data not in known for data in structured) >= 85
    blind = [mutants[number].data for number in range(0, 200, 2)]
    assert sum(map(whole, blind)) < 70


@pytest.mark.parametrize(
    ("outcome", "end", "wall_s", "cpu_s", "memory", "fault"),
    [
        ("ok", "", 0.1, 0.1, 10, ""),
        ("corrupt_image", "", 0.1, 0.1, 1000, ""),
        ("ok", "worn", 0.1, 0.1, 10, ""),
        ("corrupt_image", "crashed", 0.1, 0.1, 10, fuzz.CRASH),
        (fuzz.LACK, "killed", 0.1, 0.1, 10, fuzz.CRASH),
        ("too_expensive", "too_expensive", 99, 0.1, 10, fuzz.HANG),
        ("too_expensive", "too_expensive", 6, 5.1, 10, fuzz.SLOW),
        ("too_expensive", "too_expensive", 0.1, 0.1, 10, fuzz.LARGE),
        (fuzz.BUG, "", 0.1, 0.1, 10, fuzz.BUG),
        ("ok", "", 6, 5.1, 10, fuzz.SLOW),
        ("ok", "", 0.1, 0.1, 1001, fuzz.LARGE),
    ],
)
def test_what_is_a_fault(
    outcome: str, end: str, wall_s: float, cpu_s: float, memory: int, fault: str
) -> None:
    trial = fuzz.Trial(1, "PNG", outcome, "", wall_s, cpu_s, memory)
    assert fuzz.judged(trial, end, most_bytes=1000).fault == fault


def test_a_read_file_may_take_less_than_a_refused_one() -> None:
    picture: Picture = decode(FAST[0].make(96, 64))
    limits = Limits(max_pixels=1_000_000)
    assert fuzz.stated(b"", None, limits) - fuzz.stated(b"", picture, limits) == 17 * (
        1_000_000 - 96 * 64
    )


def test_findings_are_counted_told_and_kept(
    files: list[Original], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally, mutants = fuzz.Tally(), Mutants(files, 0)
    tally.add(fuzz.Trial(3, "PNG", "ok", "", 0.1))
    tally.add(fuzz.Trial(4, "PNG", "ok", fuzz.LARGE, 0.2, 0.1, 5 << 20))
    tally.show(mutants)
    said = capsys.readouterr().out
    assert "| ok | 2 | 2 |" in said
    assert f"FOUND  {fuzz.LARGE}: 1\n  number 4: ok" in said
    fuzz.keep(None, tally, mutants)
    fuzz.keep(tmp_path / "found", tally, mutants)
    [kept] = tmp_path.rglob("*.bin")
    assert kept.read_bytes() == mutants[4].data
    verdicts = {check.what: check.passed for check in tally.checks([fuzz.CRASH])}
    assert verdicts == {fuzz.CRASH: True, fuzz.LARGE: False}


def test_what_one_image_takes_is_measured_in_a_process_of_its_own() -> None:
    script = (
        "from benchmarks.decoding import measured\n"
        "from benchmarks.specimens import SPECIMENS\n"
        "make = next(s.make for s in SPECIMENS if str(s) == 'BMP 24 bits')\n"
        "print(*measured(make(96, 64), make(1600, 1200)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peak, _, *why = done.stdout.split()
    assert not why
    assert 3 <= int(peak) / (1600 * 1200) <= 17


def test_children_count_as_resident() -> None:
    before = resident(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout
        child.stdout.readline()
        assert resident(os.getpid()) > before + (2 << 20)
    finally:
        child.communicate(b"\n")
    assert resident(child.pid) == 0


def run(*arguments: str, limit: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/fuzz.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit,
    )


@pytest.mark.process
@pytest.mark.slow
def test_the_decoders_withstand_a_few() -> None:
    done = run("decoder", "--files", "60", "--jobs", "2", "--formats", "PNG", "GIF", "BMP")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| \w+ (?:\| \d+ )+\| (\d+) \|$", done.stdout, re.MULTILINE)
    assert sum(map(int, rows)) == 60
    assert "PASS  crashes: 0" in done.stdout
    assert "FAIL" not in done.stdout


@pytest.mark.process
@pytest.mark.slow
def test_a_server_withstands_a_few() -> None:
    done = run("http", "--files", "40", "--formats", "JPEG", "BMP")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| \d+ \w+ (?:\| \d+ )+\| (\d+) \|$", done.stdout, re.MULTILINE)
    assert sum(map(int, rows)) == 40
    assert "PASS  answers of 500: 0" in done.stdout
    assert "FAIL" not in done.stdout
