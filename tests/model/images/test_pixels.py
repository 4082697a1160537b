import importlib.util
import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from model.images.pixels import to_rgb
from tests.images import chunk, encoded, photo, tiff


def pixel(image: Image.Image) -> tuple[int, ...]:
    rgb = to_rgb(image).pixels
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    assert rgb.shape == (image.height, image.width, 3)
    return tuple(int(v) for v in rgb[0, 0])


def test_rgb_is_untouched() -> None:
    image = photo()
    assert np.array_equal(to_rgb(image).pixels, np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 25700, (100, 100, 100)),
        ("I", 25700, (100, 100, 100)),
        ("I", 200, (200, 200, 200)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 200.0, (200, 200, 200)),
        ("F", 25700.0, (100, 100, 100)),
    ],
)
def test_every_mode_by_its_rule(mode: str, value: object, expected: tuple[int, ...]) -> None:
    assert pixel(Image.new(mode, (3, 2), value)) == expected  # type: ignore[arg-type]


def test_16_bit_grey_png_is_scaled_not_clipped() -> None:
    """Clipped to white, it was scored 0.92 elsewhere."""
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, axis=0)
    data = encoded(Image.fromarray(ramp), "PNG")
    rgb = to_rgb(Image.open(io.BytesIO(data))).pixels
    assert np.array_equal(rgb[0, :, 0], np.round(ramp[0] / 257).astype(np.uint8))


def test_grey_is_scaled_without_a_large_copy_in_floating_point() -> None:
    image = Image.fromarray(np.full((1500, 1000), 25700, dtype=np.uint16))
    tracemalloc.start()
    rgb = to_rgb(image).pixels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (rgb == 100).all()
    assert peak < 12 * image.width * image.height


def test_not_a_number_is_black() -> None:
    values = np.array([[np.nan, np.inf, 0.5, 1.0]], dtype=np.float32)
    assert to_rgb(Image.fromarray(values)).pixels[0, :, 0].tolist() == [0, 0, 128, 255]


def test_a_palettes_transparent_colour_and_a_trns_key_show_the_page() -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 40, 50, 60])
    assert pixel(palette) == (40, 50, 60)
    palette.info["transparency"] = 1
    assert pixel(palette) == (255, 255, 255)
    data = encoded(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixel(Image.open(io.BytesIO(data))) == (255, 255, 255)
    data = encoded(Image.new("L", (2, 2), 7), "PNG", transparency=7)
    assert pixel(Image.open(io.BytesIO(data))) == (255, 255, 255)


def test_adobes_inverted_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = pixel(Image.open(io.BytesIO(data)))
    assert red > 245
    assert max(green, blue) < 10


def test_exif_orientation_turns_the_image() -> None:
    image = Image.new("RGB", (4, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    data = encoded(image, "PNG", exif=exif)
    rgb = to_rgb(Image.open(io.BytesIO(data))).pixels
    assert rgb.shape == (4, 2, 3)
    assert rgb[0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_set_upright_as_pillow_does(codec: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"lossless": True} if codec == "WEBP" else {}
    data = encoded(photo(), codec, exif=exif, **lossless)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(to_rgb(Image.open(io.BytesIO(data))).pixels, np.asarray(expected))


def turned(*entries: tuple[int, int, int, bytes], then: bytes = b"") -> tuple[int, int]:
    data = encoded(photo(), "PNG", exif=tiff(*entries, then=then))
    height, width, _ = to_rgb(Image.open(io.BytesIO(data))).pixels.shape
    return width, height


def test_an_orientation_that_cannot_be_read_is_none() -> None:
    six = struct.pack("<I", 6)
    assert turned((0x112, 3, 1, six)) == turned((0x112, 4, 1, six)) == (80, 96)
    assert turned((0x100, 4, 1, six), (0x112, 3, 1, six)) == (80, 96)
    for kind, count, value in (
        (2, 2, b"6\0\0\0"),
        (3, 0, six),
        (3, 2**31, six),
        (5, 1, six),
        (99, 1, six),
        (3, 1, b"\xff" * 4),
    ):
        assert turned((0x112, kind, count, value)) == (96, 80)
    # Four million numbers: Pillow would make an object of each.
    assert turned((0x112, 4, 4_000_000, struct.pack("<I", 26)), then=bytes(16_000_000)) == (96, 80)


def test_the_orientation_may_be_in_xmp_or_in_text_or_after_the_pixels() -> None:
    exif = tiff((0x112, 3, 1, struct.pack("<I", 6)))
    xmp = b'<x xmlns:tiff="t" tiff:Orientation="6"/>'
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    plain = encoded(photo(), "PNG")
    for late in (
        chunk(b"eXIf", exif),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"tEXt", b"Raw profile type exif\0" + text),
    ):
        data = plain[:-12] + late + plain[-12:]
        assert to_rgb(Image.open(io.BytesIO(data))).pixels.shape == (96, 80, 3)
    for broken in (
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n3\nxyz"),
        chunk(b"tEXt", b"exif\0text"),
        chunk(b"tEXt", b"xmp\0text"),
    ):
        data = plain[:-12] + broken + plain[-12:]
        assert to_rgb(Image.open(io.BytesIO(data))).pixels.shape == (80, 96, 3)
    data = encoded(photo(), "WEBP", xmp=xmp)
    assert to_rgb(Image.open(io.BytesIO(data))).pixels.shape == (96, 80, 3)


def test_a_foreign_profile_is_converted_a_broken_one_ignored_and_srgb_left_alone() -> None:
    image = photo()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    same = to_rgb(Image.open(io.BytesIO(encoded(image, "PNG", icc_profile=srgb))))
    assert np.array_equal(same.pixels, np.asarray(image))
    assert same.facts.warnings == ()
    for broken in (b"not a profile", lab):
        picture = to_rgb(Image.open(io.BytesIO(encoded(image, "PNG", icc_profile=broken))))
        assert np.array_equal(picture.pixels, np.asarray(image))
        assert picture.facts.warnings == ("profile_ignored",)


def test_a_profile_cannot_announce_millions_of_names() -> None:
    """Little CMS took 200 MB and a second for one of 588 bytes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = profile.index(b"mluc", 128 + 4 + 12 * int.from_bytes(profile[128:132])) + 8
    bomb = profile[:at] + b"\x02\0\0\x01" + profile[at + 4 :]
    data = encoded(photo(), "JPEG", icc_profile=bomb)
    picture = to_rgb(Image.open(io.BytesIO(data)), data)
    assert picture.facts.warnings == ("profile_ignored",)


def linear_profile() -> bytes:
    """sRGB's primaries with a linear tone curve, by patching the curves of a real profile."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for index in range(count):
        entry = 132 + 12 * index
        if bytes(data[entry : entry + 4]) in (b"rTRC", b"gTRC", b"bTRC"):
            offset = int.from_bytes(data[entry + 4 : entry + 8], "big")
            # parametricCurveType, function 0: Y = X ^ 1.0
            data[offset : offset + 16] = b"para" + bytes(4) + bytes(4) + bytes([0, 1, 0, 0])
        if data[entry : entry + 4] == b"desc":
            offset = int.from_bytes(data[entry + 4 : entry + 8], "big")
            size = int.from_bytes(data[entry + 8 : entry + 12], "big")
            text = data[offset : offset + size]
            data[offset : offset + size] = text.replace(
                "sRGB".encode("utf-16-be"), "line".encode("utf-16-be")
            )
    return bytes(data)


def test_a_linear_profile_brightens_mid_grey_to_its_srgb_value() -> None:
    image = Image.new("RGB", (8, 8), (55, 55, 55))  # 55 / 255 linear is 0.5 in sRGB
    picture = to_rgb(Image.open(io.BytesIO(encoded(image, "PNG", icc_profile=linear_profile()))))
    assert picture.facts.warnings == ()
    assert np.abs(picture.pixels.astype(int) - 128).max() <= 2


def plain(data: bytes) -> np.ndarray:
    return to_rgb(Image.open(io.BytesIO(data)), data).pixels


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(97, 83), (16, 300), (256, 256)])
def test_a_plain_jpeg_has_pillows_bits(
    size: tuple[int, int], progressive: bool, subsampling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = photo(12, 12).resize(size, Image.Resampling.BICUBIC)
    for quality in (35, 75, 95):
        data = encoded(
            smooth, "JPEG", quality=quality, progressive=progressive, subsampling=subsampling
        )
        expected = np.asarray(Image.open(io.BytesIO(data)))
        with monkeypatch.context() as context:
            if importlib.util.find_spec("simplejpeg"):
                context.setattr(Image.Image, "load", None)  # nobody calls it
            rgb = plain(data)
        assert np.array_equal(rgb, expected)
        assert rgb.flags.c_contiguous
        assert rgb.flags.writeable


def test_jpegs_are_turned_and_converted_whoever_decodes_them() -> None:
    profile = linear_profile()
    for orientation in (0, 1, 3, 6, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for options in ({"exif": exif}, {"exif": exif, "icc_profile": profile}):
            data = encoded(photo(), "JPEG", **options)
            assert np.array_equal(plain(data), to_rgb(Image.open(io.BytesIO(data))).pixels)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photo(), "JPEG", icc_profile=srgb)
    assert np.array_equal(plain(data), np.asarray(Image.open(io.BytesIO(data))))
    data = encoded(photo(), "JPEG", icc_profile=b"not a profile")
    picture = to_rgb(Image.open(io.BytesIO(data)), data)
    assert picture.facts.warnings == ("profile_ignored",)
    several = encoded(photo(), "MPO", save_all=True, append_images=[photo(seed=1)])
    assert Image.open(io.BytesIO(several)).format == "MPO"
    assert np.array_equal(plain(several), to_rgb(Image.open(io.BytesIO(several))).pixels)
    for mode in ("L", "CMYK"):
        data = encoded(photo().convert(mode), "JPEG")
        assert np.array_equal(plain(data), to_rgb(Image.open(io.BytesIO(data))).pixels)


def test_what_pillow_forgives_in_a_jpeg_is_forgiven_and_nothing_else() -> None:
    data = encoded(photo(), "JPEG")
    odd = data[:-2] + bytes(40) + data[-2:]  # libjpeg warns of bytes before the last marker
    assert np.array_equal(plain(odd), plain(data))
    with pytest.raises(OSError, match="truncated"):
        plain(data[: len(data) // 2])
    # The limits were checked on Pillow's reading of the size; nothing of another size is decoded.
    larger = encoded(photo(640, 480), "JPEG")
    assert to_rgb(Image.open(io.BytesIO(data)), larger).pixels.shape == (80, 96, 3)
