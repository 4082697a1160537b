"""Tags of a TIFF structure, which EXIF data are; nothing where they are broken."""

import struct
from collections.abc import Set as AbstractSet

DESCRIPTION, MAKE, MODEL, SOFTWARE = 0x010E, 0x010F, 0x0110, 0x0131
XMP, EXIF, USER_COMMENT, C2PA = 700, 0x8769, 0x9286, 52545
_MOST_TAGS = 1000
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4}  # of a value, by its type: those that occur here


def tags(tiff: bytes, wanted: AbstractSet[int], *, most_bytes: int) -> dict[int, bytes]:
    """Values of the first directory, and of the one for EXIF in it where that is wanted.

    Args:
        tiff: the structure, or a whole file of that format.
        wanted: numbers of tags.
        most_bytes: a longer value is left out.
    """
    reader = _Reader(tiff, most_bytes)
    found = reader.directory(reader.first, wanted | {EXIF})
    if USER_COMMENT in wanted and len(found.get(EXIF, b"")) == 4:
        found |= reader.directory(reader.number(found[EXIF]), {USER_COMMENT})
    found.pop(EXIF, None)
    return found


class _Reader:
    def __init__(self, tiff: bytes, most_bytes: int) -> None:
        self._tiff = tiff
        self._most_bytes = most_bytes
        self._order = ">" if tiff.startswith(b"MM") else "<"
        big = b"+" in tiff[2:4]
        self._count = struct.Struct(self._order + ("Q" if big else "H"))
        self._entry = struct.Struct(self._order + ("HHQ8s" if big else "HHI4s"))
        place = 8 if big else 4
        self.first = self.number(tiff[place : 2 * place])

    def number(self, value: bytes) -> int:
        """A value as a number."""
        return int.from_bytes(value, "little" if self._order == "<" else "big")

    def directory(self, at: int, wanted: AbstractSet[int]) -> dict[int, bytes]:
        """Values of these tags in the directory that begins there; of each its first."""
        found: dict[int, bytes] = {}
        count = self.number(self._tiff[at : at + self._count.size])
        start, size = at + self._count.size, self._entry.size
        for entry in range(start, start + min(count, _MOST_TAGS) * size, size):
            if entry + size > len(self._tiff):
                break
            tag, kind, length, value = self._entry.unpack_from(self._tiff, entry)
            if tag not in wanted or tag in found:
                continue
            length *= _SIZES.get(kind, 0)
            if length > len(value):
                place = self.number(value)
                value = self._tiff[place : place + length] if length <= self._most_bytes else b""
            found[tag] = value[:length]
        return found
