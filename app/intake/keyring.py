"""What an API key is, and how it is written: in NSNET_API_KEYS, or in a file of its own."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MIN_KEY = 16
"""Characters of the shortest key: what nobody guesses at the rate that wrong keys are answered."""

_MAX_FILE = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASHED = "sha256"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class KeysError(ValueError):
    """Keys are not written as they must be; the text quotes none of them."""


class Key(NamedTuple):
    """One key.

    Attributes:
        name: who has it; what logs and audit show.
        digest: its sha256; the key itself is not kept.
    """

    name: str
    digest: bytes


def digest_of(key: bytes) -> bytes:
    """What is kept of a key.

    Keys are long and nobody's password, so no slow hash is needed.
    """
    return hashlib.sha256(key).digest()


def split_name(text: str) -> tuple[str, str]:
    """Split `NAME:KEY`; the name is empty where none is given.

    Raises:
        KeysError: what stands before the colon is no name.
    """
    name, colon, key = text.strip().partition(":")
    if not colon or name == _HASHED:
        return "", text.strip()
    if not _NAME.fullmatch(name):
        raise KeysError("a name before a key's colon has up to 64 of A-Z, a-z, 0-9, '.', '_', '-'")
    return name, key.strip()


def plain_key(text: str) -> str | None:
    """The key that a client sends, of `KEY` or `NAME:KEY`; None where only its digest is given.

    Raises:
        KeysError: as `split_name`.
    """
    _, key = split_name(text)
    return None if key.startswith(f"{_HASHED}:") else key


def _digest(key: str) -> bytes:
    """The digest of `KEY`, or of `sha256:HEX`."""
    scheme, colon, digits = key.partition(":")
    if colon and scheme == _HASHED:
        if not _SHA256.fullmatch(digits):
            raise KeysError("after sha256: come 64 hexadecimal digits")
        return bytes.fromhex(digits)
    if not key.isprintable():
        raise KeysError("a key is no printable text: no client could send it")
    if len(key) < MIN_KEY:
        raise KeysError(f"a key has at least {MIN_KEY} characters")
    return digest_of(key.encode())


def parse_keys(texts: Iterable[str], unnamed: str = "key") -> tuple[Key, ...]:
    """Read keys: `KEY`, `NAME:KEY`, `NAME:sha256:HEX` or `sha256:HEX`.

    Two keys may have one name, while one replaces the other.

    Args:
        texts: one key each; blank ones are left out.
        unnamed: what a key without a name is called, with its place behind it: `key-1`.

    Raises:
        KeysError: there is none, one cannot be read, or one is given twice.
    """
    keys: list[Key] = []
    for text in filter(str.strip, texts):
        name, key = split_name(text)
        keys.append(Key(name or f"{unnamed}-{len(keys) + 1}", _digest(key)))
    if not keys:
        raise KeysError("it holds no key")
    if len({key.digest for key in keys}) < len(keys):
        raise KeysError("one key is given twice")
    return tuple(keys)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys: one a line, as `parse_keys` reads it; `#` begins a line of comment.

    Raises:
        KeysError: it cannot be read, or as `parse_keys`.
    """
    if not path.is_file():  # opening a named pipe would wait
        raise KeysError("there is no such file")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError):
        raise KeysError("it cannot be read as text") from None
    if len(data) > _MAX_FILE:
        raise KeysError("it is larger than 1 MiB")
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return parse_keys(lines, unnamed="file-key")
