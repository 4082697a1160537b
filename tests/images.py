"""Images made for tests, as bytes."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, codec: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def jpeg(width: int = 96, height: int = 80, seed: int = 0) -> bytes:
    return encoded(photo(width, height, seed), "JPEG")


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    data = encoded(photo(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def segment(marker: int, body: bytes) -> bytes:
    """One segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    """A JPEG with more segments, or junk, before its own."""
    data = jpeg()
    return data[:2] + b"".join(segments) + data[2:]


def tiff(*entries: tuple[int, int, int, bytes], then: bytes = b"") -> bytes:
    """A TIFF of one directory, or EXIF data.

    Args:
        entries: tag, type, count and four bytes: the value, or where it is. `then` begins at
            14 + 12 x the number of entries.
        then: bytes after the directory.
    """
    directory = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4) + then


def png_header(width: int, height: int) -> bytes:
    """A valid PNG of any size in a hundred bytes: the pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
