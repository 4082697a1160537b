import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from model.errors import ImageError
from model.images import Limits, decode
from model.images.png import versions
from tests.images import chunk, encoded, photo, png_header, png_with, tiff

PLAIN = encoded(photo(), "PNG")
SIX = tiff((0x112, 3, 1, struct.pack("<I", 6)))


def with_wrong_checksum(whole: bytes) -> bytes:
    return whole[:-4] + b"oops"


def text_of(size: int, *, compressed: bool, key: str = "workflow") -> bytes:
    info = PngInfo()
    info.add_itxt(key, "x" * size, zip=compressed)
    return encoded(photo(), "PNG", pnginfo=info)


METADATA: dict[str, Callable[[], bytes]] = {
    "long text": lambda: text_of(2_000_000, compressed=False),
    "long compressed text": lambda: text_of(5_000_000, compressed=True),
    "long XMP": lambda: text_of(5_000_000, compressed=True, key="XML:com.adobe.xmp"),
    "a thousand texts": lambda: png_with(
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 1000
    ),
    "text with a wrong checksum": lambda: png_with(with_wrong_checksum(chunk(b"tEXt", b"a\0b"))),
    "text of an unknown compression": lambda: png_with(chunk(b"zTXt", b"a\0\7b")),
    "short pHYs": lambda: png_with(chunk(b"pHYs", b"abc")),
    "short gAMA": lambda: png_with(chunk(b"gAMA", b"a")),
    "short cHRM": lambda: png_with(chunk(b"cHRM", b"a")),
    "short sRGB": lambda: png_with(chunk(b"sRGB", b"")),
    "short tRNS": lambda: png_with(chunk(b"tRNS", b"a")),
    "long tRNS": lambda: png_with(chunk(b"tRNS", bytes(300))),
    "EXIF with a wrong checksum": lambda: png_with(with_wrong_checksum(chunk(b"eXIf", SIX))),
    "short acTL": lambda: png_with(chunk(b"acTL", b"a")),
    "frames out of order": lambda: png_with(
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 96, 80, 0, 0, 1, 1, 0, 0)),
    ),
    "a frame outside": lambda: png_with(
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 96, 80, 9, 0, 1, 1, 0, 0)),
    ),
    "text between pixels": lambda: PLAIN.replace(
        chunk(b"IEND", b""), chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    ),
    "cut after the pixels": lambda: PLAIN[:-12] + chunk(b"tEXt", b"a\0b")[:-7],
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_never_cost_the_image(name: str) -> None:
    picture = decode(METADATA[name]())
    assert np.array_equal(picture.pixels, np.asarray(photo()))
    assert picture.facts.warnings == ()


def test_what_is_whole_and_needed_is_handed_on_uncopied() -> None:
    for data in (PLAIN, png_with(chunk(b"eXIf", SIX)), PLAIN + b"after the end"):
        (version,) = versions(data, Limits())
        assert version is data
    (version,) = versions(png_with(chunk(b"tEXt", b"a\0b")), Limits())
    assert version == PLAIN


def test_critical_chunks_stay_as_they_are() -> None:
    header = PLAIN.index(b"IHDR") + 4 + 13
    palette = encoded(photo().convert("P"), "PNG")
    colours = palette.index(b"PLTE") + 4 + 768
    for data, at in ((PLAIN, header), (palette, colours)):
        with pytest.raises(ImageError) as caught:
            decode(data[:at] + b"oops" + data[at + 4 :])
        assert caught.value.code == "corrupt_image"
    with pytest.raises(ImageError) as caught:
        decode(png_with(with_wrong_checksum(chunk(b"IDAT", zlib.compress(b"")))))
    assert caught.value.code == "corrupt_image"


def profile_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))


def test_a_profile_that_cannot_be_handed_on_is_ignored_and_that_is_said() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    good = profile_chunk(srgb)
    assert decode(png_with(good)).facts.warnings == ()
    assert decode(png_with(profile_chunk(srgb + bytes(2_000_000)))).facts.warnings == ()
    for broken in (
        with_wrong_checksum(good),
        profile_chunk(srgb + bytes(5_000_000)),
        chunk(b"iCCP", b"name\0\0not compressed"),
        chunk(b"iCCP", b"name\0\5" + zlib.compress(srgb)),
        chunk(b"iCCP", b"name"),
    ):
        picture = decode(png_with(broken))
        assert picture.facts.warnings == ("profile_ignored", "icc_profile_ignored")
        assert np.array_equal(picture.pixels, np.asarray(photo()))
    assert decode(png_with(good, good)).facts.warnings == ()


def test_the_first_whole_word_on_orientation_counts() -> None:
    late = PLAIN[:-12] + chunk(b"eXIf", SIX) + chunk(b"eXIf", b"junk") + PLAIN[-12:]
    assert decode(late).facts.width == 80
    text = b"\nexif\n%8d\n%s\n" % (len(SIX), SIX.hex().encode())
    packed = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    assert decode(png_with(packed)).facts.width == 80
    xmp = b'<x tiff:Orientation="6"/>'
    packed = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(xmp))
    assert decode(png_with(packed)).facts.width == 80


def test_transparency_is_kept() -> None:
    grey = encoded(Image.new("L", (64, 64), 7), "PNG", transparency=7)
    assert (decode(grey).pixels == 255).all()


def test_sizes_are_refused_from_the_header() -> None:
    with pytest.raises(ImageError) as caught:
        next(versions(png_header(10_000, 10_000), Limits()))
    assert caught.value.code == "too_many_pixels"
    for kind in (b"tRNS", b"iCCP", b"eXIf", b"tEXt", b"acTL", b"fcTL", b"IDAT"):
        assert isinstance(next(versions(PLAIN[:8] + chunk(kind, b"ab"), Limits())), bytes)
    for cut in range(40):
        assert isinstance(next(versions(PLAIN[:cut], Limits())), bytes)
