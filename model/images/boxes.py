"""AVIF and HEIC: sizes and numbers of what is in the boxes (ISO/IEC 14496-12 and 23008-12).

Their decoders decode what was coded, whatever part of it is shown in the end, and compare every
item with every other one.
"""

import re
from collections.abc import Iterator

from model.errors import ImageError
from model.images.picture import Limits

# Boxes, and entries of tables by their smallest size. A grid of a thousand tiles, the most that
# libheif reads, has 7,000; of a hundred thousand, libavif takes 20 seconds to open the file.
_MOST_ENTRIES = 20_000
_ENTRY_BYTES = {b"iloc": 6, b"ipma": 3, b"iref": 2}
# Boxes of boxes, and how much of each comes before the first one.
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"stsd": 8} | dict.fromkeys(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0
)
# Items that are put together from others; where they say how large they come out.
_DERIVED = {b"grid": 4, b"iovl": 10}
# Colours in code points whose curve is of high dynamic range: PQ, HLG.
_HDR = re.compile(rb"colrnclx..\0[\x10\x12]", re.DOTALL)
_TONE_MAP = b"tmap"  # derives such an image from the common one, which is read
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def avif_versions(avif: bytes, limits: Limits) -> Iterator[bytes]:
    """The file with its EXIF item renamed, so that nobody reads it.

    Pillow parses it to open the file, at any cost, and refuses the image where it is broken. It
    says nothing that is needed: an AVIF is turned by properties of its own.

    Raises:
        ImageError: too_many_pixels, corrupt_image.
    """
    _Walk(avif, limits).check()
    yield _EXIF_ITEM.sub(rb"\1free", avif)


def heic_versions(heic: bytes, limits: Limits) -> Iterator[bytes]:
    """The file, checked.

    Raises:
        ImageError: too_many_pixels, corrupt_image.
    """
    _Walk(heic, limits).check()
    yield heic


def is_hdr(data: bytes) -> bool:
    """Whether values of an AVIF or HEIC are of high dynamic range, which its decoder leaves so."""
    return _HDR.search(data) is not None and _TONE_MAP not in data


class _Walk:
    """One pass over the boxes that ends soon, whatever they say."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._entries_left = _MOST_ENTRIES
        self._derived: dict[int, int] = {}  # by item: where its size stands in its data
        self._places: list[tuple[int, int]] = []
        self._item_data = 0

    def check(self) -> None:
        """Hold every declared size against the limits.

        Raises:
            ImageError: too_many_pixels, corrupt_image.
        """
        waiting = [(b"", 0, len(self._data))]
        while waiting:
            parent, start, end = waiting.pop()
            for kind, body, stop in self._boxes(start, end):
                self._look(parent, kind, body, stop)
                if kind in _CONTAINERS:
                    waiting.append((kind, body + _CONTAINERS[kind], stop))
                elif kind == b"iinf":
                    waiting.append((kind, body + (8 if self._number(body, 1) else 6), stop))
        for place in self._places:
            self._check_derived(*place)

    def _look(self, parent: bytes, kind: bytes, body: int, stop: int) -> None:
        """Take from one box what it says of sizes."""
        if kind in _ENTRY_BYTES:
            self._spend((stop - body) // _ENTRY_BYTES[kind])
        match kind:
            case b"ispe":
                self._check_size(body + 4, 4)
            case b"infe":
                width = 4 if self._number(body, 1) > 2 else 2  # by the version
                item_type = self._data[body + 6 + width : body + 10 + width]
                if item_type in _DERIVED:
                    self._derived[self._number(body + 4, width)] = _DERIVED[item_type]
            case b"iloc":
                self._places.append((body, stop))
            case b"idat":
                if self._item_data:
                    raise ImageError("corrupt_image", "The file has item data twice.")
                self._item_data = body
            case _ if parent == b"stsd":  # a sample entry of a track
                self._check_size(body + 24, 2)

    def _boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Kind, begin and end of the contents of each box."""
        while start + 8 <= end:
            self._spend(1)
            size, kind, body = self._number(start, 4), self._data[start + 4 : start + 8], start + 8
            if size == 1:
                size, body = self._number(body, 8), body + 8
            stop = min(start + size, end) if size else end
            if stop < body:  # bytes after the last box
                return
            yield kind, body, stop
            start = stop

    def _check_derived(self, at: int, end: int) -> None:
        """Hold the sizes of derived items against the limits: their places are in the box iloc."""
        version, sizes = self._number(at, 1), self._number(at + 4, 2)
        offset_size, length_size, base_size, index_size = (sizes >> s & 15 for s in (12, 8, 4, 0))
        width = 4 if version == 2 else 2
        index_size = index_size if version else 0
        at += 6 + width
        while at < end:
            item, at = self._number(at, width), at + width
            method = self._number(at, 2) & 15 if version else 0
            at += 2 if version else 0
            base, at = self._number(at + 2, base_size), at + 2 + base_size
            extents, at = self._number(at, 2), at + 2
            offset = base + self._number(at + index_size, offset_size)
            at += extents * (index_size + offset_size + length_size)
            if item in self._derived:
                if extents != 1 or method > 1:
                    raise ImageError("corrupt_image", "A derived image of the file is in pieces.")
                offset += self._item_data if method else 0
                wide = self._number(offset + 1, 1) & 1
                self._check_size(offset + self._derived[item], 4 if wide else 2)

    def _check_size(self, at: int, width: int) -> None:
        self._limits.check_pixels(self._number(at, width), self._number(at + width, width))

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size])

    def _spend(self, entries: int) -> None:
        self._entries_left -= entries
        if self._entries_left < 0:
            raise ImageError("corrupt_image", "The file consists of far too many parts.")
