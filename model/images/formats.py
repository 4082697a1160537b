"""The formats that are read, one row each, and the walk that takes a file through its row.

To add a format is to add a row to `FORMATS`.
"""

import contextlib
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pillow_heif
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from model.errors import ImageError
from model.images.avif import check_coded_size
from model.images.headers import (
    Metered,
    check_jpeg,
    check_png,
    check_scans,
    check_size,
    check_tiff,
    without_metadata,
)
from model.images.picture import Limits, Picture
from model.images.pixels import to_rgb

pillow_heif.register_heif_opener()
# To open a JPEG, Pillow looks into its EXIF data for a resolution, which nobody needs, and refuses
# the image where they are broken.
JpegImageFile._read_dpi_from_exif = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005
# Our own limit is checked first, from the header, with an error of its own.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd EXIF data and the like; no client can see it. Set once: `catch_warnings`
# around each image would race between the decoding threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# At the level debug it would log every tag of an upload: captions, places, owners.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _unchanged(data: bytes) -> bytes:
    return data


def _accept_header(_data: bytes, _limits: Limits) -> None:
    pass


def _accept_coded(_image: Image.Image, _file: Metered, _limits: Limits) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Format:
    """All that is known of one format.

    Attributes:
        title: as people write it.
        names: as Pillow does: its plugin's name, then what else that plugin makes of a file.
        signature: matches the beginning of every file of the format. What begins so and cannot be
            opened is damaged. Two formats may share one: both are tried, in order.
        suffixes: of files, in lower case, with the dot.
        prepare: makes of the file's bytes those that are opened.
        check_header: refuses, by an `ImageError`, what would be expensive to open.
        check_coded: refuses what would be expensive to decode, now that the header is read and its
            size within the limits.
        salvage: makes of bytes that Pillow does not identify others to try; the same if there are
            none.
    """

    title: str
    names: tuple[str, ...]
    signature: re.Pattern[bytes]
    suffixes: tuple[str, ...]
    prepare: Callable[[bytes], bytes] = _unchanged
    check_header: Callable[[bytes, Limits], None] = _accept_header
    check_coded: Callable[[Image.Image, Metered, Limits], None] = _accept_coded
    salvage: Callable[[bytes], bytes] = _unchanged

    @property
    def name(self) -> str:
        """Pillow's name of the format."""
        return self.names[0]


_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def _without_exif(avif: bytes) -> bytes:
    """The file with its EXIF item renamed, so that nobody reads it.

    Pillow parses it to open the file, at any cost, and refuses the image where it is broken. It
    says nothing that is needed: an AVIF is turned by properties of its own.
    """
    return _EXIF_ITEM.sub(rb"\1free", avif)


# Pillow decodes these in Python, 0.4 us a pair of bytes. They date from screens of a megapixel.
_RUN_LENGTH = (1, 2)
_RUN_LENGTH_PIXELS = 1 << 20


def _check_run_length(image: Image.Image, file: Metered, _limits: Limits) -> None:
    if image.info["compression"] not in _RUN_LENGTH:
        return
    if image.width * image.height > _RUN_LENGTH_PIXELS:
        raise ImageError(
            "too_many_pixels",
            f"A run-length encoded BMP may have {_RUN_LENGTH_PIXELS} pixels at most.",
        )
    file.reads_left = _RUN_LENGTH_PIXELS


FORMATS: tuple[Format, ...] = (
    Format(
        title="JPEG",
        names=("JPEG", "MPO"),
        signature=re.compile(rb"\xff\xd8\xff"),
        suffixes=(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        check_header=lambda data, _limits: check_jpeg(data),
        check_coded=lambda image, file, _limits: check_scans(
            file.getvalue(), image.width * image.height
        ),
        # Pillow refuses a JPEG for a profile or a density cut short; its pixels may be intact.
        salvage=without_metadata,
    ),
    Format(
        title="PNG",
        names=("PNG",),
        signature=re.compile(rb"\x89PNG\r\n\x1a\n"),
        suffixes=(".png", ".apng"),
        check_header=lambda data, _limits: check_png(data),
    ),
    Format(
        title="WebP",
        names=("WEBP",),
        signature=re.compile(rb"(?s)RIFF.{4}WEBP"),
        suffixes=(".webp",),
    ),
    Format(
        title="AVIF",
        names=("AVIF",),
        signature=re.compile(rb"(?s).{4}ftyp(?:avif|avis|mif1|msf1)"),
        suffixes=(".avif", ".avifs"),
        prepare=_without_exif,
        check_coded=lambda _image, file, limits: check_coded_size(file.getvalue(), limits),
    ),
    Format(
        title="HEIC",
        names=("HEIF",),
        signature=re.compile(rb"(?s).{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
        suffixes=(".heic", ".heif", ".heics", ".heifs", ".hif"),
    ),
    Format(title="GIF", names=("GIF",), signature=re.compile(rb"GIF8"), suffixes=(".gif",)),
    Format(
        title="TIFF",
        names=("TIFF",),
        # The second pair is wrong, and read all the same; the third is BigTIFF.
        signature=re.compile(rb"II\*\0|MM\0\*|II\0\*|MM\*\0|II\+\0|MM\0\+"),
        suffixes=(".tif", ".tiff"),
        check_header=check_tiff,
    ),
    Format(
        title="BMP",
        names=("BMP",),
        signature=re.compile(rb"BM"),
        suffixes=(".bmp",),
        check_coded=_check_run_length,
    ),
)
SUFFIXES = frozenset(suffix for row in FORMATS for suffix in row.suffixes)

_USUAL = Limits()
# What Pillow's plugins raise on hostile bytes; anything else is a bug.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    RuntimeError,
    AttributeError,
    ZeroDivisionError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode(data: bytes, limits: Limits = _USUAL) -> Picture:
    """Decode a file by its content: no name or declared type is looked at.

    Args:
        data: the file.
        limits: what it may have at most.

    Raises:
        ImageError: empty_file, payload_too_large, unsupported_media_type, too_many_pixels,
            image_too_small, validation_error (aspect), corrupt_image.
    """
    if not data:
        raise ImageError("empty_file", "The file has no bytes.")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "payload_too_large", f"One image may have {limits.max_bytes} bytes at most."
        )
    candidates = [row for row in FORMATS if row.signature.match(data)]
    if not candidates:
        *titles, last = (row.title for row in FORMATS)
        raise ImageError(
            "unsupported_media_type", f"Send {', '.join(titles)} or {last}: the content decides."
        )
    prepared = data
    for row in candidates:
        row.check_header(data, limits)
        prepared = row.prepare(prepared)
    file = Metered(prepared)
    with _open(file, candidates) as image:
        check_size(image.width, image.height, limits)
        opened = next(row for row in candidates if image.format in row.names)
        opened.check_coded(image, file, limits)
        with _damaged("The image data are damaged or cut off."):
            return to_rgb(image, data)


def read_picture(path: Path, limits: Limits = _USUAL) -> Picture:
    """Decode a file from a disk, exactly as one that was sent.

    Raises:
        ImageError: unreadable; those of `decode`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)  # of a larger one no more than shows it
    except OSError as error:
        raise ImageError("unreadable", f"The file cannot be read: {error.strerror}.") from error
    return decode(data, limits)


def _open(file: Metered, candidates: Sequence[Format]) -> Image.Image:
    """Read the header only; no plugin but the candidates' ever sees the file."""
    with _damaged("The image's header is damaged."):
        try:
            return Image.open(file, formats=[row.name for row in candidates])
        except UnidentifiedImageError:
            data = file.getvalue()  # shared, not copied
            for row in candidates:
                if len(rest := row.salvage(data)) < len(data):
                    return _open(Metered(rest), candidates)
            raise


@contextlib.contextmanager
def _damaged(text: str) -> Iterator[None]:
    """Say so of a file that Pillow stumbles over."""
    try:
        yield
    except ImageError:  # a ValueError, too
        raise
    except _DAMAGED:
        raise ImageError("corrupt_image", text) from None
