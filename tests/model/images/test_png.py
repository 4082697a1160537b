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
        assert picture.facts.warnings == ("profile_ignored",)
        assert np.array_equal(picture.pixels, np.asarray(photo()))
    assert decode(png_with(good, good)).facts.warnings == ()


MIDDLE = encoded(Image.new("L", (64, 64), 55), "PNG")


def middle_with(*chunks: bytes) -> int:
    """What 55 becomes, or -1 with a warning."""
    picture = decode(MIDDLE[:33] + b"".join(chunks) + MIDDLE[33:])
    assert picture.facts.warnings in ((), ("profile_ignored",))
    return -1 if picture.facts.warnings else int(picture.pixels[0, 0, 0])


def gamma(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def test_a_gamma_is_applied_where_nothing_better_is_said() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    linear = gamma(100_000)
    assert middle_with(linear) == round(255 * (55 / 255) ** 0.45455)
    for usual in (gamma(45_455), gamma(47_000), gamma(0)):
        assert middle_with(usual) == 55
    for better in (
        chunk(b"sRGB", b"\0"),
        profile_chunk(srgb),
        chunk(b"cICP", bytes((1, 13, 0, 1))),
    ):
        assert middle_with(linear, better) == middle_with(better, linear) == 55
    late = MIDDLE[:-12] + linear + MIDDLE[-12:]
    assert (decode(late).pixels == 55).all()
    assert middle_with(with_wrong_checksum(linear)) == 55


def test_a_gamma_is_of_colours_and_not_of_alpha() -> None:
    half = encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG")
    data = half[:33] + gamma(100_000) + half[33:]
    assert np.array_equal(decode(data).pixels, decode(half).pixels)


def test_code_points_other_than_srgbs_are_ignored_and_that_is_said() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert middle_with(chunk(b"cICP", bytes((1, 13, 0, 1)))) == 55
    for points in ((1, 8, 0, 1), (9, 16, 0, 1), (12, 13, 0, 1)):
        code_points = chunk(b"cICP", bytes(points))
        assert middle_with(code_points) == -1
        # The same in other words, which are read.
        assert middle_with(code_points, profile_chunk(srgb)) == 55
        assert middle_with(profile_chunk(srgb), code_points) == 55
    assert middle_with(chunk(b"cICP", b"abc")) == 55


SCENES = [photo(12, 12, seed).resize((96, 80)) for seed in range(3)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_an_image_that_is_not_of_the_animation_is_not_read(mode: str) -> None:
    hidden, shown, last = (scene.convert(mode) for scene in SCENES)
    data = encoded(
        hidden, "PNG", save_all=True, default_image=True, append_images=[shown, last], blend=1
    )
    picture = decode(data)
    assert picture.facts.warnings[0] == "animation"
    assert np.array_equal(picture.pixels, decode(encoded(shown, "PNG")).pixels)


def test_an_animation_that_pillow_cannot_lay_over_is_not_called_damaged() -> None:
    frames = [Image.fromarray(np.full((80, 80), value, np.uint16)) for value in (0, 9, 25_700)]
    options = {"save_all": True, "default_image": True, "append_images": frames[1:]}
    assert decode(encoded(frames[0], "PNG", **options)).facts.warnings[0] == "animation"
    with pytest.raises(ImageError) as caught:
        decode(encoded(frames[0], "PNG", blend=1, **options))
    assert caught.value.code == "unsupported_variant"


def frame_of(size: int) -> bytes:
    """A frame of one grey in the upper left corner, over what is there."""
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, size, size, 0, 0, 1, 1, 0, 1))
    rows = (b"\0" + b"\x09" * 3 * size) * size
    return control + chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(rows))


def test_an_animation_begins_on_an_empty_page() -> None:
    announced = PLAIN[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + PLAIN[33:]
    pixels = decode(announced[:-12] + frame_of(64) + announced[-12:]).pixels
    assert (pixels[:64, :64] == 9).all()
    assert (pixels[64:] == 255).all()
    # Without a frame, it is the image.
    assert np.array_equal(decode(announced).pixels, np.asarray(photo()))
    bare = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 1, 0, 1))
    assert np.array_equal(
        decode(announced[:-12] + bare + announced[-12:]).pixels, np.asarray(photo())
    )


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
