import io
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from model.errors import ImageError, ImageTooSmallError
from model.images import FORMATS, SUFFIXES, Facts, Format, Limits, Picture, decode, read_picture
from tests.images import encoded, jpeg, photo, png_header, tiff

LIMITS = Limits(max_bytes=3_000_000, max_pixels=2_000_000, min_side=64)


def opened(data: bytes) -> Picture:
    return decode(data, LIMITS)


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        opened(data)
    return caught.value.code


HEIC = encoded(photo(), "HEIF")


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_every_format_is_read_by_content(row: Format, tmp_path: Path) -> None:
    data = encoded(photo(), row.name)
    picture = opened(data)
    assert picture.facts == Facts(row.name, 96, 80, ())
    assert picture.pixels.shape == (80, 96, 3)
    assert row.signature.match(data)
    assert row.suffixes
    path = tmp_path / "image.txt"
    path.write_bytes(data)
    assert np.array_equal(read_picture(path).pixels, picture.pixels)


def test_no_two_formats_share_a_name_or_a_suffix() -> None:
    names = [name for row in FORMATS for name in row.names]
    assert len(names) == len(set(names))
    assert len(SUFFIXES) == sum(len(row.suffixes) for row in FORMATS)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)


def test_of_brands_that_two_formats_share_the_content_decides() -> None:
    for brand in (b"ftypmif1", b"ftypmsf1"):
        assert opened(HEIC.replace(b"ftypheic", brand)).facts.format == "HEIF"
    avif = encoded(photo(), "AVIF").replace(b"ftypavif", b"ftypmif1")
    assert opened(avif).facts.format == "AVIF"


def test_a_file_that_cannot_be_read_or_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for unreadable in (path, tmp_path):
        with pytest.raises(ImageError) as caught:
            read_picture(unreadable)
        assert caught.value.code == "unreadable"
    path.write_bytes(encoded(photo(), "PNG"))
    with pytest.raises(ImageError) as caught:
        read_picture(path, Limits(max_bytes=1000))
    assert caught.value.code == "payload_too_large"


def test_what_is_too_small_is_told_what_is_not() -> None:
    with pytest.raises(
        ImageTooSmallError, match="64 pixels or more to be judged; this image has 63 x 500"
    ) as caught:
        opened(png_header(63, 500))
    assert caught.value.min_side == 64
    assert decode(encoded(photo(3, 2), "PNG")).pixels.shape == (2, 3, 3)


@pytest.mark.process
def test_images_are_read_without_the_libraries_of_models_and_services() -> None:
    code = "import sys, model.images; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not {"torch", "sklearn", "pydantic", "fastapi"} & set(modules.decode().split())


def test_lossless_pixels_are_exact() -> None:
    assert np.array_equal(opened(encoded(photo(), "PNG")).pixels, np.asarray(photo()))


def frames_of(codec: str, *colours: tuple[int, int, int] | None) -> bytes:
    """An animation of so many frames: each of one colour, or None for a photograph."""
    frames = [
        photo(seed=seed) if colour is None else Image.new("RGB", (96, 80), colour)
        for seed, colour in enumerate(colours)
    ]
    return encoded(frames[0], codec, save_all=True, append_images=frames[1:], **LOSSLESS[codec])


LOSSLESS: dict[str, dict[str, bool | int]] = {
    "GIF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "speed": 10},
}
BLACK, GREY = (0, 0, 0), (9, 9, 9)


@pytest.mark.parametrize("codec", LOSSLESS)
def test_of_an_animation_the_first_frame_with_content_is_read(codec: str) -> None:
    for frames in ((None, BLACK, None), (BLACK, GREY, BLACK, None, BLACK)):
        picture = opened(frames_of(codec, *frames))
        assert picture.facts.warnings == ("animation",)
        expected = np.asarray(photo(seed=frames.index(None)))
        # By so much, as GIF has few colours, and AVIF fewer than pixels.
        assert np.corrcoef(picture.pixels.ravel(), expected.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("codec", LOSSLESS)
def test_of_an_animation_without_content_the_first_frame_is_read(codec: str) -> None:
    assert not opened(frames_of(codec, BLACK, GREY, BLACK)).pixels.any()
    late = frames_of(codec, *((BLACK, GREY) * 16), None)
    assert not opened(late).pixels.any()  # beyond the 32nd
    # Together, the frames that are looked at may have no more pixels than one image.
    limits = Limits(max_pixels=2 * 96 * 80)
    assert not decode(frames_of(codec, BLACK, GREY, None), limits).pixels.any()
    assert decode(frames_of(codec, BLACK, None), limits).pixels.any()


def test_a_broken_later_frame_does_not_cost_the_first() -> None:
    data = bytearray(frames_of("GIF", BLACK, None))
    data[-len(data) // 2 :] = b"\xfe" * (len(data) // 2)
    picture = opened(bytes(data))
    assert not picture.pixels.any()
    assert picture.facts.warnings[0] == "animation"


@pytest.mark.parametrize("codec", ["TIFF", "MPO"])
def test_of_several_pages_the_first_is_read_and_that_is_said(codec: str) -> None:
    pages = [Image.new("RGB", (96, 80)), photo(seed=2)]
    picture = opened(encoded(pages[0], codec, save_all=True, append_images=pages[1:]))
    assert picture.facts.warnings == ("first_page",)
    assert not picture.pixels.any()


def many_pages(count: int, first_page: bytes = b"") -> bytes:
    """A TIFF of one readable page and `count` more directories, by default like the first."""
    data = bytearray(encoded(Image.new("L", (96, 80)), "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]
    directory = first_page or bytes(data[start:end])
    at = len(data)
    data[end : end + 4] = struct.pack("<I", at)
    for index in range(count):
        at += len(directory) + 4
        data += directory + struct.pack("<I", at if index < count - 1 else 0)
    return bytes(data)


def test_further_pages_are_neither_counted_nor_read() -> None:
    """Counting them takes time by their number squared: minutes for a file within the limits."""
    data = many_pages(25_000)
    start = time.perf_counter()
    assert opened(data).facts.warnings == ("first_page",)
    assert time.perf_counter() - start < 1
    nonsense = struct.pack("<HHHII", 1, 254, 4, 1, 0)  # a page of no size
    assert opened(many_pages(2, nonsense)).facts.warnings == ("first_page",)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF",
        b"RIFF" + bytes(4) + b"WAVEfmt ",
        b"\0\0\0\x1cftypisom" + bytes(100),
        b"plain text " * 20,
        b"%PDF-1.7\n" + b"0" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(photo(), "ICO"),
        encoded(photo(), "PPM"),
        encoded(photo(), "JPEG2000"),
        encoded(photo(), "TGA"),
    ],
)
def test_other_content_is_unsupported(data: bytes) -> None:
    assert refused(data) == "unsupported_media_type"


def test_empty_and_large_files() -> None:
    assert refused(b"") == "empty_file"
    assert refused(b"\xff" * 3_000_001) == "payload_too_large"


@pytest.mark.parametrize(
    "data", [b"BM", b"GIF8", b"RIFF" + bytes(4) + b"WEBPabcd", b"\xff\xd8\xff", HEIC[:50]]
)
def test_what_begins_as_an_image_is_a_damaged_one(data: bytes) -> None:
    assert refused(data) == "corrupt_image"


def test_truncated_files_are_corrupt() -> None:
    for codec in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        data = encoded(photo(200, 200), codec)
        assert refused(data[: len(data) * 2 // 3]) == "corrupt_image", codec


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ((12_000, 1), "image_too_small"),
        ((63, 500), "image_too_small"),
        ((40_000, 40_000), "too_many_pixels"),
        ((2**31 - 1, 2**31 - 1), "too_many_pixels"),
        ((12_000, 100), "validation_error"),
    ],
)
def test_sizes_are_refused_from_the_header_at_no_cost(size: tuple[int, int], code: str) -> None:
    data = png_header(*size)
    tracemalloc.start()
    start = time.perf_counter()
    assert refused(data) == code
    took = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert took < 1


def test_reported_size_is_the_upright_one() -> None:
    image = photo(96, 80)
    exif = image.getexif()
    exif[0x0112] = 6
    picture = opened(encoded(image, "JPEG", exif=exif))
    assert (picture.facts.width, picture.facts.height) == (80, 96)


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
# Pillow cannot write these back, as it did to turn the image; or cannot even read them.
BROKEN_EXIF = [
    b"Exif\0\0II*\0",
    b"Exif\0\0" + b"junk" * 10,
    b"\0",
    *(
        b"Exif\0\0" + tiff(entry, TURNED, then=bytes(100))
        for entry in (
            (0x0100, 6, 1, b"\xff\0\0\0"),
            (0x0100, 9, 1, b"\xff" * 4),
            (0x0100, 7, 4, b"\xff" * 4),
            (0x0100, 10, 1, struct.pack("<I", 40)),
            (0x010E, 11, 1, bytes(4)),
            (0x011A, 1, 1, bytes(4)),
        )
    ),
]


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_broken_exif_does_not_cost_the_image(codec: str, exif: bytes) -> None:
    picture = opened(encoded(photo(), codec, exif=exif))
    # What else is wrong does not matter to an orientation that can be read.
    assert (picture.facts.width, picture.facts.height) == (
        (80, 96) if 0x0112.to_bytes(2, "little") in exif else (96, 80)
    )
    assert picture.facts.warnings == ()


def test_broken_exif_does_not_cost_an_avif_or_a_heic() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a caption"
    whole = encoded(photo(), "AVIF", exif=exif)
    for junk in (b"junk", b"MM\0*"):
        data = whole.replace(b"MM\0*", junk)
        assert opened(data).pixels.shape == (96, 80, 3)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo()).save(buffer, exif=exif.tobytes())
    assert opened(buffer.getvalue().replace(b"MM\0*", b"junk")).facts.format == "HEIF"


@pytest.mark.parametrize(
    "entry",
    [
        (700, 11, 2, struct.pack("<I", 8)),  # XMP that is no text
        (700, 2, 9, struct.pack("<I", 8)),
        (34675, 11, 2, struct.pack("<I", 8)),  # nor a profile
        (34665, 11, 1, b"\xff" * 4),  # EXIF nowhere
        (34665, 9, 1, b"\xff" * 4),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_broken_metadata_do_not_cost_a_tiff(
    entry: tuple[int, int, int, bytes], orientation: int
) -> None:
    tags = {
        256: 96,
        257: 80,
        258: 8,
        259: 1,
        262: 1,
        274: orientation,
        277: 1,
        278: 80,
        279: 96 * 80,
        273: 14 + 11 * 12,
    }
    entries = [(tag, 4, 1, struct.pack("<I", value)) for tag, value in tags.items()]
    picture = opened(tiff(*sorted([*entries, entry]), then=bytes(96 * 80)))
    assert picture.pixels.shape == ((80, 96, 3) if orientation == 1 else (96, 80, 3))


SMALL = Image.new("RGB", (64, 72), (200, 100, 50))
SEEDS = [
    jpeg(),
    *(encoded(photo(), codec) for codec in ("PNG", "WEBP", "GIF", "TIFF", "BMP")),
    # Of few pixels, so that edits hit metadata.
    *(
        encoded(SMALL, codec, exif=b"Exif\0\0" + tiff(TURNED, (0x0100, 3, 1, bytes(4))))
        for codec in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    ),
]
CODES = {
    "empty_file",
    "unsupported_media_type",
    "corrupt_image",
    "image_too_small",
    "too_many_pixels",
    "validation_error",
    "unsupported_variant",
}


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.floats(0.05, 1),
)
@settings(deadline=None, max_examples=150)
def test_hostile_bytes_decode_or_give_a_typed_error(
    seed: bytes, edits: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(seed[: int(len(seed) * cut)])
    for where, value in edits:
        if data:
            data[int(where * (len(data) - 1))] = value
    code = None
    try:
        picture = opened(bytes(data))
        assert picture.pixels.shape == (picture.facts.height, picture.facts.width, 3)
    except ImageError as error:
        code = error.code
    assert code is None or code in CODES


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=100)
def test_random_bytes_give_a_typed_error(data: bytes) -> None:
    assert refused(data) in CODES


def bitmap(bits: int, masks: tuple[int, ...], compression: int = 3) -> bytes:
    """A BMP of 64 x 64 pixels of which Pillow gets to read the header."""
    header = (40, 64, 64, 1, bits, compression, 0, 0, 0, 0, 0)
    start = struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, 54, *header)
    return start + struct.pack(f"<{len(masks)}I", *masks) + bytes(64 * 64 * 4)


@pytest.mark.parametrize(
    "data",
    [
        bitmap(32, (0x3FF00000, 0xFFC00, 0x3FF)),
        bitmap(24, (), compression=4),
        bitmap(2, (), compression=0),
        HEIC.replace(b"hvc1", b"vvc1"),
    ],
)
def test_valid_variants_that_are_not_read_are_not_called_damaged(data: bytes) -> None:
    assert refused(data) == "unsupported_variant"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (AssertionError(), "corrupt_image"),
        (RecursionError(), "corrupt_image"),
        (RuntimeError("Memory allocation error: Security limit exceeded"), "corrupt_image"),
        (Image.DecompressionBombError(), "too_many_pixels"),
    ],
)
def test_whatever_a_plugin_raises_has_a_code(
    raised: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_image: Image.Image) -> None:
        raise raised

    monkeypatch.setattr(BmpImageFile, "load", load)
    assert refused(encoded(photo(), "BMP")) == code


@pytest.mark.parametrize(
    "raised", [MemoryError(), OSError("decoder error -9"), RuntimeError("Memory allocation error")]
)
def test_no_memory_is_not_the_files_fault(
    raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_image: Image.Image) -> None:
        raise raised

    monkeypatch.setattr(BmpImageFile, "load", load)
    with pytest.raises(MemoryError):
        opened(encoded(photo(), "BMP"))


def test_pillow_keeps_a_limit_of_its_own_behind_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    opened(encoded(photo(), "PNG"))
    assert LIMITS.max_pixels == Image.MAX_IMAGE_PIXELS
    decode(encoded(photo(), "PNG"), Limits(max_pixels=10_000))
    assert LIMITS.max_pixels == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    opened(encoded(photo(), "PNG"))
    assert LIMITS.max_pixels == Image.MAX_IMAGE_PIXELS
