"""What an API key is, and how it is written: in NSNET_API_KEYS, or in a file of its own."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

MIN_KEY = 16
"""Characters of the shortest key: what nobody guesses at the rate that wrong keys are answered."""

_MAX_FILE = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASHED = "sha256"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class KeysError(ValueError):
    """Keys are not written as they must be; the text says which, and quotes none of them."""


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


def parse_keys(texts: Iterable[str]) -> tuple[Key, ...]:
    """Read keys: `KEY`, `NAME:KEY`, `NAME:sha256:HEX` or `sha256:HEX`.

    Two keys may have one name, while one replaces the other. One without a name is called `key-1`,
    by its place.

    Args:
        texts: one key each; blank ones are left out, and count for no place.

    Raises:
        KeysError: there is none, one cannot be read, or one is given twice.
    """
    given = enumerate(filter(str.strip, texts), 1)
    return _parse([(f"key {place}", text) for place, text in given], "key")


def _parse(given: Sequence[tuple[str, str]], unnamed: str) -> tuple[Key, ...]:
    """Read keys, each with where it stands."""
    keys: list[Key] = []
    places: dict[bytes, str] = {}
    for place, text in given:
        try:
            name, key = split_name(text)
            digest = _digest(key)
        except KeysError as error:
            raise KeysError(f"{place}: {error}") from None
        if digest in places:
            raise KeysError(f"{place}: the key of {places[digest]} is given twice")
        places[digest] = place
        keys.append(Key(name or f"{unnamed}-{len(keys) + 1}", digest))
    if not keys:
        raise KeysError("it holds no key")
    return tuple(keys)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys: one a line, as `parse_keys` reads it; `#` begins a line of comment.

    One without a name is called `file-key-1`, by its place among the keys.

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
    lines = enumerate(text.split("\n"), 1)
    given = [(f"line {number}", line) for number, line in lines if line.partition("#")[0].strip()]
    return _parse(given, "file-key")
