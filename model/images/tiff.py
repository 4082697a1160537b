"""TIFF: what its first directory says, before Pillow and libtiff read it each in its own way."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from model.errors import ImageError
from model.images.picture import Limits

_REDUCED, _OLD_REDUCED, _PHOTOMETRIC, _SUB_DIRECTORIES, _DNG = 254, 255, 262, 330, 50706
_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 322, 323
_SENSOR = {32803, 34892}  # a colour filter's pattern; linear values of a sensor
_CANON = b"CR\x02"
# Pixels are found and read by these, and turned and coloured by two of them.
_PIXEL_TAGS = {
    *range(254, 260),
    *(262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332),
    *(338, 339, 347),
    *range(512, 522),  # of JPEG, as it was done first
    *(529, 530, 531, 532, 34675),
}
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_TAGS = 1_000  # of a directory; raw files of cameras have a hundred
_MOST_NUMBERS = 64  # of a tag that is read here: the levels of a pyramid
_MOST_DIRECTORIES = 64  # that are looked into
_NO_PICTURE = 1 | 4  # bits: a reduced copy, a mask


def versions(tiff: bytes, limits: Limits) -> Iterator[bytes]:
    """The file; then with nothing in its first directory but what pixels need.

    Raises:
        ImageError: unsupported_media_type, unsupported_variant, corrupt_image; those of
            `Limits.check_size`.
    """
    if tiff.startswith(b"MM\0+"):
        # Pillow would read it as a classic TIFF, and libtiff then as what it is.
        raise ImageError("unsupported_variant", "A BigTIFF in big-endian order is not read.")
    reader = _Reader(tiff)
    if reader.count(reader.first) > _MOST_TAGS:
        raise ImageError("corrupt_image", "The TIFF has far too many tags.")
    first = reader.numbers(reader.first)
    widths, lengths = first.get(_WIDTH, []), first.get(_LENGTH, [])
    _refuse_raw(reader, first)
    if widths and lengths:  # of a tag that is given twice, Pillow and libtiff take different ones
        limits.check_size(max(widths), max(lengths))
        limits.check_pixels(
            max(first.get(_TILE_WIDTH, widths)), max(first.get(_TILE_LENGTH, lengths))
        )
    yield tiff
    yield reader.pixels_only()


def _refuse_raw(reader: "_Reader", first: dict[int, list[int]]) -> None:
    """Refuse a file whose first picture stands for another one.

    Raises:
        ImageError: unsupported_media_type.
    """
    parts = [reader.numbers(at) for at in first.get(_SUB_DIRECTORIES, [])[:_MOST_NUMBERS]]
    pages = [reader.numbers(at) for at in reader.further()]
    if (
        reader.is_canon
        or _DNG in first
        or any(_SENSOR & set(each.get(_PHOTOMETRIC, ())) for each in (first, *parts, *pages))
        or any(bits & _NO_PICTURE for bits in first.get(_REDUCED, ()))
        or 2 in first.get(_OLD_REDUCED, ())
        or any(_area(part) > _area(first) for part in parts)
    ):
        raise ImageError(
            "unsupported_media_type",
            "Camera raw files are not read, nor any TIFF that begins with a reduced copy or a mask "
            "of its image: send the developed picture.",
        )


def _area(directory: dict[int, list[int]]) -> int:
    return max(directory.get(_WIDTH, [0])) * max(directory.get(_LENGTH, [0]))


class _Entry(NamedTuple):
    at: int
    tag: int
    kind: int
    length: int
    value_at: int


class _Reader:
    """Directories of a TIFF; nothing where they cannot be read.

    Attributes:
        first: where the first directory begins.
        is_canon: whether the header says that this is a CR2.
    """

    def __init__(self, tiff: bytes) -> None:
        self._tiff = tiff
        self._order = "<" if tiff.startswith(b"II") else ">"
        self._big = tiff[2:3] == b"+"
        self._entry = struct.Struct(self._order + ("HHQ" if self._big else "HHI"))
        self._place = struct.Struct(self._order + ("Q" if self._big else "I"))
        self._count = struct.Struct(self._order + ("Q" if self._big else "H"))
        self.is_canon = tiff.startswith(_CANON, 8)
        self.first = self._unpack(self._place, 8 if self._big else 4)

    def count(self, directory: int) -> int:
        """How many tags it has."""
        return self._unpack(self._count, directory)

    def further(self) -> list[int]:
        """Where the directories after the first one begin, each once."""
        places = [self.first]
        while len(places) <= _MOST_DIRECTORIES:
            tags = self.count(places[-1]) * (self._entry.size + self._place.size)
            place = self._unpack(self._place, places[-1] + self._count.size + tags)
            if not place or place in places:
                break
            places.append(place)
        return places[1:]

    def numbers(self, directory: int) -> dict[int, list[int]]:
        """The first numbers of each tag that is looked at here, of all its occurrences."""
        found: dict[int, list[int]] = {}
        for entry in self._entries(directory):
            if entry.length and entry.kind in _NUMBERS and entry.tag in _LOOKED_AT:
                numbers = struct.Struct(
                    f"{self._order}{min(entry.length, _MOST_NUMBERS)}{_NUMBERS[entry.kind]}"
                )
                at = entry.value_at
                if entry.length * struct.calcsize("=" + _NUMBERS[entry.kind]) > self._place.size:
                    at = self._unpack(self._place, at)
                if at + numbers.size <= len(self._tiff):
                    numbers_of_tag = found.setdefault(entry.tag, [])
                    numbers_of_tag += numbers.unpack_from(self._tiff, at)
        return found

    def pixels_only(self) -> bytes:
        """The file, with every tag that pixels do not need made a private one without a value."""
        copy = bytearray(self._tiff)
        nothing = self._entry.pack(0xFFFF, 1, 1) + bytes(self._place.size)
        for entry in self._entries(self.first):
            if entry.tag not in _PIXEL_TAGS:
                copy[entry.at : entry.at + len(nothing)] = nothing
        return bytes(copy)

    def _unpack(self, number: struct.Struct, at: int) -> int:
        """A number of the file; 0 beyond its end."""
        whole = at + number.size <= len(self._tiff)
        return int(number.unpack_from(self._tiff, at)[0]) if whole else 0

    def _entries(self, directory: int) -> Iterator[_Entry]:
        count = min(self.count(directory), _MOST_TAGS)
        start, size = directory + self._count.size, self._entry.size + self._place.size
        for at in range(start, min(start + count * size, len(self._tiff) - size + 1), size):
            tag, kind, length = self._entry.unpack_from(self._tiff, at)
            yield _Entry(at, tag, kind, length, at + self._entry.size)


_LOOKED_AT = {
    *(_REDUCED, _OLD_REDUCED, _PHOTOMETRIC, _SUB_DIRECTORIES, _DNG),
    *(_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH),
}
