"""The formats that are read, one row each, and the walk that takes a file through its row.

To add a format is to add a row to `FORMATS`.
"""

import contextlib
import io
import logging
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pillow_heif
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from model.errors import ImageError
from model.images import boxes, gif, jpeg, png, tiff, webp
from model.images.picture import Limits, Picture
from model.images.pixels import to_rgb

_USUAL = Limits()

# What is beside the picture is never read. One thread a decoder: each more takes memory of its own.
pillow_heif.register_heif_opener(
    thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# To open a JPEG, Pillow looks into its EXIF data for a resolution, which nobody needs, and refuses
# the image where they are broken.
JpegImagePlugin.JpegImageFile._read_dpi_from_exif = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005
# Behind our own limit, which is checked first and has an error of its own.
Image.MAX_IMAGE_PIXELS = _USUAL.max_pixels
# Pillow warns of odd EXIF data and the like; no client can see it. Set once: `catch_warnings`
# around each image would race between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# At the level debug it would log every tag of an upload: captions, places, owners.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _as_it_is(data: bytes, _limits: Limits) -> Iterator[bytes]:
    yield data


@dataclass(frozen=True, slots=True)
class Format:
    """All that is known of one format.

    Attributes:
        title: as people write it.
        names: as Pillow does: its plugin's name, then what else that plugin makes of a file.
        plugin: opens a file, and reads its header only.
        signature: matches the beginning of every file of the format. What begins so and cannot be
            opened is damaged. Two formats may share one: both are tried, in order.
        suffixes: of files, in lower case, with the dot.
        versions: makes of the file's bytes those that are opened, and others to try where Pillow
            cannot read them; or refuses the file, by an `ImageError`.
        unread: matches what the plugin says of a valid file that it cannot read.
    """

    title: str
    names: tuple[str, ...]
    plugin: Callable[[io.BytesIO, str], ImageFile.ImageFile]
    signature: re.Pattern[bytes]
    suffixes: tuple[str, ...]
    versions: Callable[[bytes, Limits], Iterator[bytes]] = _as_it_is
    unread: re.Pattern[str] = re.compile(r"(?!)")

    @property
    def name(self) -> str:
        """Pillow's name of the format."""
        return self.names[0]


FORMATS: tuple[Format, ...] = (
    Format(
        title="JPEG",
        names=("JPEG", "MPO"),
        plugin=JpegImagePlugin.jpeg_factory,
        signature=re.compile(rb"\xff\xd8\xff"),
        suffixes=(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        versions=jpeg.versions,
        unread=re.compile(r"cannot handle \d+-(bit layers|layer images)"),
    ),
    Format(
        title="PNG",
        names=("PNG",),
        plugin=PngImagePlugin.PngImageFile,
        signature=re.compile(rb"\x89PNG\r\n\x1a\n"),
        suffixes=(".png", ".apng"),
        versions=png.versions,
        # An animation of 16-bit grey, of frames laid over one another.
        unread=re.compile(r"conversion from I;16"),
    ),
    Format(
        title="WebP",
        names=("WEBP",),
        plugin=WebPImagePlugin.WebPImageFile,
        signature=re.compile(rb"(?s)RIFF.{4}WEBP"),
        suffixes=(".webp",),
        versions=webp.versions,
    ),
    Format(
        title="AVIF",
        names=("AVIF",),
        plugin=AvifImagePlugin.AvifImageFile,
        signature=re.compile(rb"(?s).{4}ftyp(?:avif|avis|mif1|msf1)"),
        suffixes=(".avif", ".avifs"),
        versions=boxes.avif_versions,
        unread=re.compile(r"No codec available|Not implemented|Unsupported"),
    ),
    Format(
        title="HEIC",
        names=("HEIF",),
        plugin=pillow_heif.HeifImageFile,
        signature=re.compile(rb"(?s).{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
        suffixes=(".heic", ".heif", ".heics", ".heifs", ".hif"),
        versions=boxes.heic_versions,
        # The first: there are pictures, none of them of a kind that is known.
        unread=re.compile(r"not identified by this driver|not been built in|Unsupported"),
    ),
    Format(
        title="GIF",
        names=("GIF",),
        plugin=GifImagePlugin.GifImageFile,
        signature=re.compile(rb"GIF8"),
        suffixes=(".gif",),
        versions=gif.versions,
    ),
    Format(
        title="TIFF",
        names=("TIFF",),
        plugin=TiffImagePlugin.TiffImageFile,
        # The second pair is wrong, and read all the same; the third is BigTIFF.
        signature=re.compile(rb"II\*\0|MM\0\*|II\0\*|MM\*\0|II\+\0|MM\0\+"),
        suffixes=(".tif", ".tiff"),
        versions=tiff.versions,
        # The number is of a compression.
        unread=re.compile(r"unknown pixel mode|not yet supported|^\d+$"),
    ),
    Format(
        title="BMP",
        names=("BMP",),
        plugin=BmpImagePlugin.BmpImageFile,
        signature=re.compile(rb"BM"),
        suffixes=(".bmp",),
        unread=re.compile(r"Unsupported BMP (bitfields layout|compression|pixel depth)"),
    ),
)
SUFFIXES = frozenset(suffix for row in FORMATS for suffix in row.suffixes)

# What the decoders written in C say when they get none; libheif also of numbers that it does not
# believe.
_NO_MEMORY = re.compile(
    r"memory(?! allocation error: Security limit)|decoder error -9", re.IGNORECASE
)


def decode(data: bytes, limits: Limits = _USUAL) -> Picture:
    """Decode a file by its content: no name or declared type is looked at.

    Args:
        data: the file.
        limits: what it may have at most.

    Raises:
        ImageError: empty_file, payload_too_large, unsupported_media_type, too_many_pixels,
            image_too_small, validation_error (aspect), unsupported_variant, corrupt_image.
        MemoryError: there is not enough for this image.
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
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits.max_pixels)
    refusal = ""
    for row in candidates:
        for version in row.versions(data, limits):
            try:
                return _read(row, version, limits)
            except ImageError as error:
                if error.code not in ("corrupt_image", "unsupported_variant"):
                    raise
                # Not the error itself: its traceback holds pixels.
                code, refusal = error.code, str(error)
    raise ImageError(code, refusal)


def read_picture(path: Path, limits: Limits = _USUAL) -> Picture:
    """Decode a file from a disk, exactly as one that was sent.

    Raises:
        ImageError: unreadable; those of `decode`.
        MemoryError: there is not enough for this image.
    """
    return decode(read_file(path, limits), limits)


def read_file(path: Path, limits: Limits = _USUAL) -> bytes:
    """The bytes of a file on a disk, for `decode`; of one too large no more than shows it.

    Raises:
        ImageError: unreadable.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe may take for ever
            raise ImageError("unreadable", "It is not a regular file.")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        raise ImageError("unreadable", f"The file cannot be read: {error.strerror}.") from error


def _read(row: Format, data: bytes, limits: Limits) -> Picture:
    """Decode one version of a file.

    Raises:
        ImageError: those of `Limits.check_size`, unsupported_variant, corrupt_image.
        MemoryError: there is not enough for this image.
    """
    with _damaged(row, "The image's header is damaged."):
        image = row.plugin(io.BytesIO(data), "")
    with image, _damaged(row, "The image data are damaged or cut off."):
        limits.check_size(image.width, image.height)
        # Together, they are no more pixels than one image may have.
        frames = max(1, min(_FRAMES, limits.max_pixels // (image.width * image.height)))
        return to_rgb(image, data, frames)


_FRAMES = 32  # of an animation are looked at


@contextlib.contextmanager
def _damaged(row: Format, text: str) -> Iterator[None]:
    """Say so of a file that Pillow stumbles over, be it by what it does not know."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError("too_many_pixels", "A frame of the image has too many pixels.") from None
    except Exception as error:  # noqa: BLE001 (plugins raise what they like)
        if _NO_MEMORY.search(str(error)):
            raise MemoryError from None
        if row.unread.search(str(error)):
            raise ImageError(
                "unsupported_variant",
                f"This variant of {row.title} is not read: send the image in a common one.",
            ) from None
        raise ImageError("corrupt_image", text) from None
