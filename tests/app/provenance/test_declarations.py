"""Whatever is done to a file, what it declares is read or not, and is never an error."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.decoding.child import MESSAGE_BYTES
from app.provenance.declarations import Declarations
from app.provenance.report import Report
from app.schemas import ProvenanceOut
from benchmarks.signing import signed
from tests.app.provenance.files import (
    A1111,
    COMFYUI,
    camera,
    exif,
    international_chunk,
    packet,
    sourced,
    user_comment,
    with_metadata,
)
from tests.images import jpeg, png_with


@functools.cache
def specimens() -> list[bytes]:
    unsigned = [
        with_metadata(codec, exif=exif(comment=user_comment(A1111)), xmp=sourced())
        for codec in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF")
    ]
    return [
        *unsigned,
        with_metadata("GIF", xmp=packet(attributes='xmp:CreatorTool="A tool"')),
        png_with(international_chunk("prompt", COMFYUI, packed=True)),
        signed(jpeg(), "image/jpeg"),
        signed(with_metadata("AVIF"), "image/avif"),
    ]


def reports(data: bytes) -> list[Report]:
    return list(Declarations("").reports(data))


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A specimen that ends early, whose bytes are changed, or doubled."""
    data = bytearray(draw(st.sampled_from(specimens())))
    place = st.integers(0, len(data) - 1)
    # Metadata come first, mostly.
    for at in draw(st.lists(place | st.integers(0, min(2000, len(data) - 1)), max_size=8)):
        data[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del data[draw(place) :]
    if draw(st.booleans()):
        start, end = sorted((draw(place), draw(place)))
        data[start:start] = data[start:end]
    return bytes(data)


@settings(deadline=None, max_examples=300)
@given(broken())
@example(b"")
def test_a_broken_file_is_no_error(data: bytes) -> None:
    for report in reports(data):
        ProvenanceOut.model_validate(report)
        assert len(json.dumps(report, ensure_ascii=False).encode()) < MESSAGE_BYTES // 2


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=2000), st.sampled_from([0, 2, 4, 12, 20, 100]))
def test_nor_is_any_beginning_with_another_end(rest: bytes, kept: int) -> None:
    for specimen in specimens():
        reports(specimen[:kept] + rest)


def test_what_nobody_signed_is_told_before_a_signature_is_checked() -> None:
    data = signed(with_metadata("JPEG", exif=camera()), "image/jpeg")
    first, second = reports(data)
    assert (first["declares"], first["c2pa"]["status"]) == ("camera", "unverified")
    assert (second["declares"], second["c2pa"]["status"]) == ("ai_generated", "valid")
    assert len(reports(jpeg())) == 1


def test_the_guard_stands_while_a_signature_is_checked_and_no_longer() -> None:
    stands: list[bool] = []

    @contextmanager
    def guard() -> Iterator[None]:
        stands.append(True)
        yield
        stands.append(False)

    declarations = Declarations("", guard)
    assert len(list(declarations.reports(jpeg()))) == 1
    assert stands == []
    assert len(list(declarations.reports(signed(jpeg(), "image/jpeg")))) == 2
    assert stands == [True, False]


def test_the_library_that_checks_is_loaded_for_the_first_file_that_wants_it() -> None:
    """Nor is anything else that is heavy: there is a process for each core."""
    code = """
import sys
from app.provenance.declarations import Declarations
[_] = Declarations("").reports(sys.stdin.buffer.read())
print({"c2pa", "pydantic", "torch", "PIL", "numpy"} & sys.modules.keys())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], input=jpeg(), capture_output=True, check=True
    )
    assert run.stdout.decode() == "set()\n"
