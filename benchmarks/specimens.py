"""Small or large files of every format and mode that is read, made by code: the same bytes always.

What no library here writes (interlaced or 16-bit PNG, tiled TIFF, run-length BMP, profiles of other
spaces) is put together by hand.
"""

import io
import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pillow_heif.register_heif_opener()

Make = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Specimen:
    """One way to write an image.

    Attributes:
        format: as `model.images.FORMATS` names it.
        name: of the variant.
        make: a file of so many pixels, width and height; both 16 at least, and even.
    """

    format: str
    name: str
    make: Make

    def __str__(self) -> str:
        return f"{self.format} {self.name}"


# --- pictures -----------------------------------------------------------------------------------

_GRAIN = np.random.default_rng(0).integers(0, 32, (64, 64, 3), dtype=np.uint8)


def samples(width: int, height: int, channels: int, frame: int = 0) -> NDArray[np.uint8]:
    """Soft slopes with grain, uint8 [height, width, channels]; each frame is moved by a step."""
    across = (np.arange(width) * 192 // width).astype(np.uint8)[None, :]
    down = (np.arange(height) * 192 // height).astype(np.uint8)[:, None]
    pixels = np.empty((height, width, channels), np.uint8)
    for channel in range(channels):
        pixels[..., channel] = (across, down, across // 2 + down // 2, 191 - across)[channel % 4]
    tiles = (-(-height // 64), -(-width // 64))
    for channel in range(channels):
        grain = np.tile(_GRAIN[..., channel % 3], tiles)[:height, :width]
        pixels[..., channel] += grain
    return np.roll(pixels, 8 * frame, axis=1) if frame else pixels


def picture(mode: str, width: int, height: int, frame: int = 0) -> Image.Image:
    """The same in one of Pillow's modes; `P4` is a palette of four bits, `P1` of one."""
    if mode.startswith("P") and mode != "PA":
        bits = int(mode[1:] or 8)
        grey = samples(width, height, 1, frame)[..., 0]
        image = Image.fromarray(grey >> (8 - bits)).convert("L")
        image.putpalette(np.random.default_rng(1).integers(0, 256, 3 << bits).tolist())
        return image
    if mode in ("I;16", "I;16B", "I", "F"):
        grey = samples(width, height, 1, frame)[..., 0]
        wide = grey.astype({"F": np.float32, "I": np.int32}.get(mode, np.uint16)) * 257
        return Image.fromarray(wide.astype(">u2") if mode == "I;16B" else wide)
    if mode == "1":
        return Image.fromarray(samples(width, height, 1, frame)[..., 0]).convert("1")
    if mode == "PA":
        return Image.frombytes("LA", (width, height), samples(width, height, 2).tobytes()).convert(
            "PA"
        )
    if mode == "LA":
        return Image.frombytes("LA", (width, height), samples(width, height, 2, frame).tobytes())
    if mode in ("YCbCr", "RGBX"):
        return picture("RGB", width, height, frame).convert(mode)
    channels = {"L": 1, "RGB": 3, "LAB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = samples(width, height, channels, frame)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encoded(image: Image.Image, codec: str, **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def _still(codec: str, mode: str, **options: Any) -> Make:
    return lambda width, height: encoded(picture(mode, width, height), codec, **options)


def _moving(codec: str, mode: str, count: int = 3, **options: Any) -> Make:
    def make(width: int, height: int) -> bytes:
        first, *rest = (picture(mode, width, height, frame) for frame in range(count))
        return encoded(first, codec, save_all=True, append_images=rest, **options)

    return make


# --- metadata -----------------------------------------------------------------------------------


def exif(orientation: int) -> bytes:
    """EXIF data with an orientation, a name, and a directory of the camera's."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "a picture"
    tags.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    return tags.tobytes()


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation=\"6\"></x:xmpmeta>"


def profile(space: bytes) -> bytes:
    """An ICC profile of the space `RGB ` (matrix), `GRAY` (curve), `CMYK` or `Lab ` (tables)."""

    def curve(gamma: float) -> bytes:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2)

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * v) for v in values))

    name = b"desc" + bytes(4) + struct.pack(">I", 8) + b"a space\0" + bytes(79)
    tags = {b"desc": name, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"RGB ":  # Adobe's primaries
        tags |= {
            b"rXYZ": xyz(0.6097, 0.3111, 0.0195),
            b"gXYZ": xyz(0.2053, 0.6257, 0.0609),
            b"bXYZ": xyz(0.1492, 0.0632, 0.7446),
            **{kind: curve(1.8) for kind in (b"rTRC", b"gTRC", b"bTRC")},
        }
    elif space == b"GRAY":
        tags[b"kTRC"] = curve(1.0)
    else:
        tags[b"A2B0"] = _table(4 if space == b"CMYK" else 3)
    count = len(tags)
    directory, data = b"", b""
    for kind, body in tags.items():
        body += bytes(-len(body) % 4)
        directory += struct.pack(">4sII", kind, 132 + 12 * count + len(data), len(body))
        data += body
    head = struct.pack(
        ">I4sI4s4s4s12s4s28s3i48s", 132 + len(directory) + len(data), b"", 0x2400000, b"prtr",
        space, b"Lab " if b"A2B0" in tags else b"XYZ ", b"", b"acsp", b"", 63190, 65536, 54061, b"",
    )  # fmt: skip
    return head + struct.pack(">I", count) + directory + data


def _table(channels: int) -> bytes:
    """A `mft1` of two points a channel: the more ink, the darker."""
    points = [
        3 * [255 - 255 * sum(p) // channels] for p in itertools.product((0, 1), repeat=channels)
    ]
    one = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([channels, 3, 2, 0]) + one
    return head + ramp * channels + bytes(itertools.chain(*points)) + ramp * 3


_WIDE = profile(b"RGB ")

# --- PNG ----------------------------------------------------------------------------------------

# Of each pass: first column and row, and steps between them.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(bits: int, colour: int, *more: bytes, interlaced: bool = False) -> Make:
    """A PNG of any depth and colour type, with more chunks before its pixels."""

    def make(width: int, height: int) -> bytes:
        pixels = samples(width, height, _PNG_CHANNELS[colour])
        passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
        rows = b"".join(_png_rows(pixels[y::down, x::right], bits) for x, y, right, down in passes)
        head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
        parts = [png_chunk(*chunk) for chunk in chunks]
        if colour == 3:
            palette = np.random.default_rng(1).integers(0, 256, 3 << bits, np.uint8).tobytes()
            more_ = (png_chunk(b"PLTE", palette), *more)
        else:
            more_ = more
        return b"\x89PNG\r\n\x1a\n" + b"".join([parts[0], *more_, *parts[1:]])

    return make


def _png_rows(pixels: NDArray[np.uint8], bits: int) -> bytes:
    """Rows as a PNG stores them, each behind its filter: none and Paeth in turns."""
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    if bits == 16:
        flat = np.repeat(flat, 2, axis=1)
    elif bits < 8:
        flat = _packed(flat, bits)
    filters = np.zeros((height, 1), np.uint8)
    filters[1::2] = 4
    return np.hstack([filters, flat]).tobytes()


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The upper bits of each value, several in a byte, rows padded."""
    each = 8 // bits
    padded = np.pad(values >> (8 - bits), ((0, 0), (0, -values.shape[1] % each)))
    bytes_ = np.zeros((len(values), padded.shape[1] // each), np.uint8)
    for index in range(each):
        bytes_ |= padded[:, index::each] << (8 - bits * (index + 1))
    return bytes_


def _text_chunks() -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", "a cat, 20 steps", zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    info.add_itxt("workflow", "{}" * 50, zip=True)
    return info


# --- TIFF ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tiff:
    """A TIFF that Pillow does not write.

    Attributes:
        channels: samples a pixel.
        photometric: 0 WhiteIsZero, 1 BlackIsZero, 2 RGB, 3 palette, 5 CMYK, 8 LAB.
        bits: of a sample.
        order: `<` or `>`.
        tile: side of its tiles; None: strips.
        deflated: compressed.
        predictor: horizontal differencing.
        planar: each channel apart.
        extra: what the last channel is: 1 and 2 are alpha.
        big: a BigTIFF.
        more: further tags: tag, type, values.
    """

    channels: int
    photometric: int
    bits: int = 8
    order: str = "<"
    tile: int | None = None
    deflated: bool = False
    predictor: bool = False
    planar: bool = False
    extra: int | None = None
    big: bool = False
    more: tuple[tuple[int, int, tuple[int, ...]], ...] = ()

    def __call__(self, width: int, height: int) -> bytes:
        """Make it."""
        pixels = samples(width, height, self.channels)
        planes = np.split(pixels, self.channels, axis=2) if self.planar else [pixels]
        pieces = [self._piece(piece) for plane in planes for piece in self._cut(plane)]
        word = 16 if self.big else 4
        start = 16 if self.big else 8
        offsets = [start + at for at in itertools.accumulate(map(len, pieces), initial=0)]
        offset_type = word
        where, sizes = (324, 325) if self.tile else (273, 279)
        tags: list[tuple[int, int, Sequence[int]]] = [
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [self.bits] * self.channels),
            (259, 3, [8 if self.deflated else 1]),
            (262, 3, [self.photometric]),
            (where, offset_type, offsets[:-1]),
            (277, 3, [self.channels]),
            (sizes, 4, [len(piece) for piece in pieces]),
            (284, 3, [2 if self.planar else 1]),
            *self.more,
        ]
        if self.tile:
            tags += [(322, 4, [self.tile]), (323, 4, [self.tile])]
        else:
            tags.append((278, 4, [64]))
        if self.predictor:
            tags.append((317, 3, [2]))
        if self.extra is not None:
            tags.append((338, 3, [self.extra]))
        directory = tiff_directory(
            [(tag, kind, _values(self.order, kind, values)) for tag, kind, values in sorted(tags)],
            offsets[-1],
            self.order,
            big=self.big,
        )
        return tiff_header(self.order, offsets[-1], big=self.big) + b"".join(pieces) + directory

    def _cut(self, plane: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        height, width, _ = plane.shape
        down, across = (self.tile, self.tile) if self.tile else (64, width)
        for y, x in itertools.product(range(0, height, down), range(0, width, across)):
            piece = plane[y : y + down, x : x + across]
            if self.tile:
                rest = (down - piece.shape[0], across - piece.shape[1])
                piece = np.pad(piece, ((0, rest[0]), (0, rest[1]), (0, 0)))
            yield piece

    def _piece(self, piece: NDArray[np.uint8]) -> bytes:
        flat = piece.reshape(len(piece), -1)
        if self.predictor:  # of 8 bits
            steps = piece.copy()
            steps[:, 1:] -= piece[:, :-1]
            flat = steps.reshape(len(piece), -1)
        if self.bits == 16:
            flat = np.repeat(flat, 2, axis=1)
        elif self.bits < 8:
            flat = _packed(flat, self.bits)
        data = flat.tobytes()
        return zlib.compress(data, 1) if self.deflated else data


def tiff_header(order: str, start: int, *, big: bool) -> bytes:
    """The first bytes of a TIFF whose directory begins at `start`."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
    return mark + struct.pack(f"{order}HI", 42, start)


def tiff_directory(
    entries: Sequence[tuple[int, int, bytes]], at: int, order: str, *, big: bool, after: int = 0
) -> bytes:
    """A directory, and behind it the values that it has no room for.

    Args:
        entries: tag, type and the bytes of the values.
        at: where it begins in the file.
        order: `<` or `>`.
        big: of a BigTIFF.
        after: where the next one begins; 0: there is none.
    """
    head, entry, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    size = struct.calcsize(order + head) + len(entries) * (4 + 2 * room) + room
    directory, rest = struct.pack(order + head, len(entries)), b""
    offset = "Q" if big else "I"
    for tag, kind, value in entries:
        count = len(value) // TIFF_SIZES.get(kind, 1)
        directory += struct.pack(order + entry, tag, kind, count)
        if len(value) <= room:
            directory += value.ljust(room, b"\0")
        else:
            directory += struct.pack(order + offset, at + size + len(rest))
            rest += value
    return directory + struct.pack(order + offset, after) + rest


TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value, by type; of all others one."""


def _values(order: str, kind: int, values: Sequence[int]) -> bytes:
    return struct.pack(f"{order}{len(values)}{ {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind] }", *values)


_PALETTE = (320, 3, tuple(range(0, 65536, 257)) + tuple(range(65535, -1, -257)) + 256 * (1000,))

# --- BMP ----------------------------------------------------------------------------------------


def _bitmap(bits: int, compression: int = 0, *, upside: bool = False, core: bool = False) -> Make:
    """A BMP of 4 or 16 bits, run-length encoded, with bit fields, top down, or as OS/2 has it."""

    def make(width: int, height: int) -> bytes:
        grey = samples(width, height, 1)[..., 0]
        if compression in (1, 2):
            rows = b"".join(map(_run_lengths if bits == 8 else _run_lengths_4, grey)) + b"\0\1"
        elif bits == 16:
            rows = _padded(samples(width, height, 2).reshape(height, -1))
        elif bits == 8:
            rows = _padded(grey)
        else:
            rows = _padded(_packed(grey, bits))
        masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F) if compression == 3 else b""
        colours = 1 << bits if bits <= 8 else 0
        palette = np.random.default_rng(1).integers(0, 256, (colours, 3 if core else 4), np.uint8)
        if core:
            head = struct.pack("<IHHHH", 12, width, height, 1, bits)
        else:
            tall = -height if upside else height
            head = struct.pack(
                "<IiiHHIIiiII", 40, width, tall, 1, bits, compression, len(rows), 0, 0, colours, 0
            )
        head += masks + palette.tobytes()
        return (
            struct.pack("<2sIII", b"BM", 14 + len(head) + len(rows), 0, 14 + len(head))
            + head
            + rows
        )

    return make


def _padded(rows: NDArray[np.uint8]) -> bytes:
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


def _run_lengths(row: NDArray[np.uint8]) -> bytes:
    """One row of 8 bits: runs of up to 255 alike, the first 16 pixels as they are."""
    ends = np.flatnonzero(np.diff(row[16:], append=np.uint8(row[-1] + 1))) + 1
    out, start = bytearray(b"\0\x10" + row[:16].tobytes()), 0
    for end in ends.tolist():
        for at in range(start, end, 255):
            out += bytes((min(255, end - at), row[16 + start]))
        start = end
    return bytes(out + b"\0\0")


def _run_lengths_4(row: NDArray[np.uint8]) -> bytes:
    """One row of 4 bits: pairs of pixels that alternate; even widths only."""
    pairs = (row[::2] & 0xF0) | row[1::2] >> 4
    return b"".join(bytes((2, pair)) for pair in pairs.tolist()) + b"\0\0"


# --- GIF ----------------------------------------------------------------------------------------


def _gif(**options: Any) -> Make:
    """Frames with palettes of their own, the later ones smaller, one colour see-through."""

    def make(width: int, height: int) -> bytes:
        frames = [picture("P", width, height, frame) for frame in range(4)]
        for number, frame in enumerate(frames[1:], 1):
            palette = np.random.default_rng(number).integers(0, 256, 768)
            frame.putpalette(palette.tolist())
            frame.paste(7, (0, 0, width // (number + 1), height // 2))
        return encoded(
            frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40, loop=0,
            transparency=7, **options,
        )  # fmt: skip

    return make


# --- HEIC, AVIF ---------------------------------------------------------------------------------

_BORN = re.compile(rb"(?s)((?:mvhd|tkhd|mdhd)(?:\x01.{3})).{16}")
_FAST = {"preset": "ultrafast"}  # x265's


def _avif(make: Make) -> Make:
    """The same without the moment at which it was written."""
    return lambda width, height: _BORN.sub(rb"\1" + bytes(16), make(width, height))


def _heic_16(width: int, height: int) -> bytes:
    pixels = np.repeat(samples(width, height, 3), 2, axis=2).tobytes()
    image = pillow_heif.from_bytes("RGB;16", (width, height), pixels)
    buffer = io.BytesIO()
    image.save(buffer, quality=60, enc_params=_FAST)
    return buffer.getvalue()


# --- all of them --------------------------------------------------------------------------------

_TIFF_COMPRESSIONS = {
    "packbits": "RGB", "tiff_lzw": "RGB", "tiff_adobe_deflate": "RGB", "tiff_deflate": "RGB",
    "jpeg": "RGB", "lzma": "RGB", "zstd": "RGB", "group3": "1", "group4": "1", "tiff_ccitt": "1",
}  # fmt: skip
_TIFF_MODES = (
    *("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "LAB"),
    *("I;16", "I;16B", "I", "F"),
)

_TABLE: dict[str, dict[str, Make]] = {
    "JPEG": {
        "4:2:0": _still("JPEG", "RGB", quality=80),
        "4:4:4, restarts": _still("JPEG", "RGB", subsampling=0, restart_marker_blocks=4),
        "progressive": _still("JPEG", "RGB", progressive=True),
        "grey": _still("JPEG", "L"),
        "grey, progressive, profile": _still(
            "JPEG", "L", progressive=True, icc_profile=profile(b"GRAY")
        ),
        "CMYK": _still("JPEG", "CMYK"),
        "CMYK, progressive, profile": _still(
            "JPEG", "CMYK", progressive=True, icc_profile=profile(b"CMYK")
        ),
        "RGB as it is": _still("JPEG", "RGB", keep_rgb=True),
        "turned, profile": _still("JPEG", "RGB", exif=exif(6), icc_profile=_WIDE, xmp=XMP),
        "progressive, turned": _still("JPEG", "RGB", progressive=True, exif=exif(8), comment=b"x"),
        "MPO": _moving("MPO", "RGB", 2),
    },
    "PNG": {
        **{f"grey, {bits} bits": _png(bits, 0) for bits in (1, 2, 4, 8, 16)},
        **{f"palette, {bits} bits": _png(bits, 3) for bits in (1, 2, 4, 8)},
        **{f"RGB, {bits} bits": _png(bits, 2) for bits in (8, 16)},
        **{f"grey and alpha, {bits} bits": _png(bits, 4) for bits in (8, 16)},
        **{f"RGBA, {bits} bits": _png(bits, 6) for bits in (8, 16)},
        "RGBA, 16 bits, interlaced": _png(16, 6, interlaced=True),
        "palette, 2 bits, interlaced": _png(2, 3, interlaced=True),
        "grey with a key": _png(8, 0, png_chunk(b"tRNS", b"\0\7")),
        "grey, 16 bits, with a key": _png(16, 0, png_chunk(b"tRNS", b"\7\7")),
        "RGB with a key": _png(8, 2, png_chunk(b"tRNS", b"\0\7\0\7\0\7")),
        "palette with alpha": _png(8, 3, png_chunk(b"tRNS", bytes(range(200)))),
        "RGB, profile, text, turned": lambda width, height: encoded(
            picture("RGB", width, height),
            "PNG",
            icc_profile=_WIDE,
            exif=exif(5),
            pnginfo=_text_chunks(),
            compress_level=1,
        ),
        "RGBA, profile, turned": _still(
            "PNG", "RGBA", icc_profile=_WIDE, exif=exif(6), compress_level=1
        ),
        "animation": _moving("PNG", "RGBA", disposal=1, blend=1, compress_level=1),
        "animation, previous": _moving("PNG", "RGB", disposal=2, blend=0, compress_level=1),
    },
    "WEBP": {
        "lossy": _still("WEBP", "RGB", method=0),
        "lossless": _still("WEBP", "RGB", lossless=True, quality=0, method=0),
        "lossy, alpha": _still("WEBP", "RGBA", method=0),
        "lossless, alpha": _still("WEBP", "RGBA", lossless=True, quality=0, method=0),
        "lossy, profile, turned": _still(
            "WEBP", "RGB", method=0, icc_profile=_WIDE, exif=exif(3), xmp=XMP
        ),
        "lossy, alpha, profile, turned": _still(
            "WEBP", "RGBA", method=0, icc_profile=_WIDE, exif=exif(6)
        ),
        "animation": _moving("WEBP", "RGB", method=0, duration=40),
        "animation, alpha, mixed": _moving("WEBP", "RGBA", method=0, allow_mixed=True, quality=50),
    },
    "AVIF": {
        name: _avif(make)
        for name, make in {
            "4:2:0": _still("AVIF", "RGB", speed=10),
            "4:4:4": _still("AVIF", "RGB", speed=10, subsampling="4:4:4"),
            "grey": _still("AVIF", "L", speed=10),
            "alpha": _still("AVIF", "RGBA", speed=10),
            "lossless, tiles": _still(
                "AVIF", "RGB", speed=10, quality=100, tile_rows=1, tile_cols=1, range="limited"
            ),
            "alpha, profile, turned": _still(
                "AVIF", "RGBA", speed=10, icc_profile=_WIDE, exif=exif(6), xmp=XMP
            ),
            "sequence": _moving("AVIF", "RGB", speed=10, duration=40),
            "sequence, alpha": _moving("AVIF", "RGBA", speed=10, duration=40),
        }.items()
    },
    "HEIF": {
        "4:2:0": _still("HEIF", "RGB", quality=60, enc_params=_FAST),
        "4:4:4": _still("HEIF", "RGB", quality=60, enc_params=_FAST | {"chroma": "444"}),
        "grey": _still("HEIF", "L", quality=60, enc_params=_FAST),
        "alpha": _still("HEIF", "RGBA", quality=60, enc_params=_FAST),
        "16 bits": _heic_16,
        "turned, profile": _still(
            "HEIF", "RGB", quality=60, enc_params=_FAST, exif=exif(6), icc_profile=_WIDE, xmp=XMP
        ),
        "alpha, turned, profile": _still(
            "HEIF", "RGBA", quality=60, enc_params=_FAST, exif=exif(7), icc_profile=_WIDE
        ),
        "grid": lambda width, height: encoded(
            picture("RGB", width, height),
            "HEIF",
            quality=60,
            enc_params=_FAST,
            tile_size=max(32, width // 16 * 2),
        ),
        "several, thumbnails": _moving(
            "HEIF", "RGB", 2, quality=60, enc_params=_FAST, thumbnails=[32]
        ),
    },
    "GIF": {
        "still": _still("GIF", "P"),
        "interlaced, see-through": _still("GIF", "P", interlace=1, transparency=7),
        "grey": _still("GIF", "L", interlace=0),
        "1 bit": _still("GIF", "1"),
        **{f"animation, disposal {disposal}": _gif(disposal=disposal) for disposal in range(4)},
    },
    "TIFF": {
        **{f"{mode}": _still("TIFF", mode) for mode in _TIFF_MODES},
        **{
            f"{mode}, {compression}": _still("TIFF", mode, compression=compression)
            for compression, mode in _TIFF_COMPRESSIONS.items()
        },
        "L, deflated": _still("TIFF", "L", compression="tiff_adobe_deflate"),
        "CMYK, deflated": _still("TIFF", "CMYK", compression="tiff_adobe_deflate"),
        "LAB, deflated": _still("TIFF", "LAB", compression="tiff_adobe_deflate"),
        "L, jpeg": _still("TIFF", "L", compression="jpeg"),
        "YCbCr, jpeg": _still("TIFF", "YCbCr", compression="jpeg"),
        "I;16, lzw": _still("TIFF", "I;16", compression="tiff_lzw"),
        "pages": _moving("TIFF", "RGB"),
        "RGB, big": _still("TIFF", "RGB", big_tiff=True),
        "CMYK, profile, turned": _still(
            "TIFF", "CMYK", icc_profile=profile(b"CMYK"), tiffinfo={274: 6}
        ),
        "RGBA, lzw, profile, turned": _still(
            "TIFF", "RGBA", compression="tiff_lzw", icc_profile=_WIDE, tiffinfo={274: 5}
        ),
        "LAB, profile": _still("TIFF", "LAB", icc_profile=profile(b"Lab ")),
        "tiles": Tiff(3, 2, tile=64),
        "tiles, deflated, predicted": Tiff(3, 2, tile=32, deflated=True, predictor=True),
        "tiles, alpha, big": Tiff(4, 2, tile=32, deflated=True, extra=2, big=True),
        "tiles, planes": Tiff(3, 2, tile=64, deflated=True, planar=True),
        "strips, planes": Tiff(3, 2, planar=True),
        "premultiplied alpha": Tiff(4, 2, extra=1),
        "RGB, 16 bits": Tiff(3, 2, bits=16),
        "RGB, 16 bits, big-endian, deflated": Tiff(3, 2, bits=16, order=">", deflated=True),
        "RGBA, 16 bits, turned": Tiff(4, 2, bits=16, extra=2, more=((274, 3, (6,)),)),
        "CMYK, 16 bits": Tiff(4, 5, bits=16),
        "white is zero": Tiff(1, 0, order=">"),
        "white is zero, 4 bits, deflated": Tiff(1, 0, bits=4, deflated=True),
        "white is zero, 16 bits": Tiff(1, 0, bits=16),
        "palette, tiles": Tiff(1, 3, tile=64, more=(_PALETTE,)),
    },
    "BMP": {
        "1 bit": _still("BMP", "1"),
        "8 bits": _still("BMP", "P"),
        "grey": _still("BMP", "L"),
        "24 bits": _still("BMP", "RGB"),
        "32 bits": _still("BMP", "RGBA"),
        "4 bits": _bitmap(4),
        "16 bits": _bitmap(16),
        "16 bits, fields": _bitmap(16, 3),
        "8 bits, top down": _bitmap(8, upside=True),
        "8 bits, OS/2": _bitmap(8, core=True),
        "8 bits, run lengths": _bitmap(8, 1),
        "4 bits, run lengths": _bitmap(4, 2),
    },
}

SPECIMENS: tuple[Specimen, ...] = tuple(
    Specimen(format_, name, make) for format_, row in _TABLE.items() for name, make in row.items()
)
