"""Where files lie: on a disk, or wherever fsspec goes by a URL. No text here holds a secret."""

import os
import re
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from model.images import ImageError, Limits, read_file

# A colon that no port follows is a password's: it may hold slashes, as half of S3's do.
_USER = re.compile(r"(?<=://)(?:[^/]*|[^/:]*:(?!:|\d+/)(?:(?!::).)*)@", re.DOTALL)
_CACHE = re.compile(r"(?:^|::)(?:block|file|simple)?cached?(?:::|://|$)")
_QUERY = re.compile(r"(https?://[^?#]*)[?#].*", re.DOTALL)  # signatures, of a signed URL


class BulkError(Exception):
    """Why nothing can be listed, written or gone on with: one clear line."""


class StuckError(BulkError):
    """A thread hangs: the interpreter's own end would wait for it."""


def is_url(name: str) -> bool:
    """Whether fsspec is to make sense of a name; any other is a path on this machine."""
    return "://" in name


def without_user(name: str) -> str:
    """A name without a URL's user and password: what it names is the same without them."""
    return _USER.sub("", name) if is_url(name) else name


def public(name: str) -> str:
    """A name as it may be shown: without user and password, and a web address's query."""
    return _QUERY.sub(r"\1", without_user(name)) if is_url(name) else name


def locate(name: str) -> tuple[Any, str]:
    """The file system that a name leads to, and its path there.

    Args:
        name: a URL, or a path on this machine.

    Raises:
        BulkError: nothing here goes by such a URL.
    """
    if not is_url(name):
        return LocalFileSystem(), os.path.abspath(name)  # noqa: PTH100  (no link is followed)
    if _CACHE.search(name):
        raise BulkError(f"{public(name)}: such a cache would keep images on a disk")
    try:
        fs, path = url_to_fs(name)
    except ImportError as error:
        raise BulkError(f"{public(name)}: {error}") from None  # which package to install
    except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
        raise BulkError(f"{public(name)} cannot be opened: {type(error).__name__}") from None
    return fs, path


def read(fs: Any, path: str, limits: Limits) -> bytes:
    """A file's bytes; of one too large no more than shows it.

    Raises:
        ImageError: not_found, unreadable.
    """
    try:
        if isinstance(fs, LocalFileSystem):
            return read_file(Path(path), limits)
        return _fetched(fs, path, limits.max_bytes + 1)
    except Exception as error:  # noqa: BLE001  (each file system raises what it likes)
        raise unreadable(error) from None


def unreadable(error: BaseException) -> ImageError:
    """What it means for an image that its file, or what holds it, cannot be read."""
    if isinstance(error.__cause__ or error, FileNotFoundError):
        return ImageError("not_found", "There is no such file.")
    return ImageError("unreadable", "The file cannot be read.")


def _fetched(fs: Any, path: str, most: int) -> bytes:
    """The first bytes of a file, by one request."""
    if isinstance(fs, HTTPFileSystem):
        return _streamed(fs, path, most)
    try:
        data: bytes = fs.cat_file(path, start=0, end=most)
    except Exception:
        if fs.size(path) != 0:  # an empty one has no range
            raise
        return b""
    return data


def _streamed(fs: HTTPFileSystem, path: str, most: int) -> bytes:
    """Of a server that need not heed a range, nor send what it says, no more is taken."""
    data = bytearray()
    with fs.open(path, block_size=0, size=most) as file:  # a size: or it would be asked for
        while len(data) < most and (piece := file.read(most - len(data))):
            data += piece
    return bytes(data)
