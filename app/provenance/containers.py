"""Where a file keeps what it says of itself: containers walked for EXIF, XMP, texts and C2PA.

Nothing here raises, on whatever bytes; what is broken, or beyond the bounds, is not there.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.provenance import tiff

# Chunks, segments, boxes, tags: of each file so many are looked at. A PNG of 32 MiB has 4,000.
_MOST_ENTRIES = 20_000
_MOST_TEXTS = 64
_MOST_TEXT_BYTES = 1 << 20  # of one text, unpacked; all together cost twice as much
_MOST_UNPACKED = 1032  # bytes of each byte of deflate
_MOST_XMP_BYTES = 1 << 20
_MOST_EXIF_BYTES = 1 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_KEYWORD = "XML:com.adobe.xmp"
_GIF_XMP, _GIF_XMP_END = b"!\xff\x0bXMP DataXMP", b"\x01\xff\xfe\xfd"
_GIF_C2PA = b"!\xff\x0bC2PA_GIF"
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_BMFF = re.compile(rb".{4}ftyp", re.DOTALL)
_BMFF_TYPES = {b"avif": "image/avif", b"avis": "image/avif"}


@dataclass(slots=True)
class Blobs:
    """What a file says of itself, as it was found.

    Attributes:
        mime: type of the file, for `credentials`.
        exif: a TIFF structure.
        xmp: XML.
        texts: by keyword; empty for a comment without one.
        c2pa: whether there is a C2PA manifest.
    """

    mime: str = ""
    exif: bytes = b""
    xmp: bytes = b""
    texts: dict[str, str] = field(default_factory=dict)
    c2pa: bool = False


def blobs(data: bytes) -> Blobs:
    """Walk a file of any format that is read here; of another, nothing is found."""
    found = Blobs()
    if data.startswith(b"\xff\xd8\xff"):
        found.mime = "image/jpeg"
        _walk_jpeg(data, found)
    elif data.startswith(_PNG):
        found.mime = "image/png"
        _walk_png(data, found)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found.mime = "image/webp"
        _walk_webp(data, found)
    elif _BMFF.match(data):
        found.mime = _BMFF_TYPES.get(data[8:12], "image/heic")
        _Boxes(data, found).walk()
    elif data[:2] in (b"II", b"MM"):
        found.mime = "image/tiff"
        _walk_tiff(data, found)
    elif data.startswith(b"GIF8"):
        found.mime = "image/gif"
        start = data.find(_GIF_XMP) + len(_GIF_XMP)
        if start >= len(_GIF_XMP):
            found.xmp = data[start : start + _MOST_XMP_BYTES].partition(_GIF_XMP_END)[0]
        found.c2pa = _GIF_C2PA in data
    return found


def _walk_jpeg(data: bytes, found: Blobs) -> None:
    """Segments before the first scan. XMP that goes on in further segments is left out."""
    at = 2
    for _ in range(_MOST_ENTRIES):
        at = data.find(b"\xff", at, at + 65536)
        if at < 0:
            return
        marker = data[at + 1 : at + 2]
        if marker in (b"\xff", b"\0"):  # padding; no marker
            at += 1 if marker == b"\xff" else 2
            continue
        if marker in (b"\xda", b"\xd9", b""):
            return
        if b"\xd0" <= marker <= b"\xd8" or marker == b"\x01":  # without a length
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        body, end = at + 4, at + 2 + max(2, length)
        if marker == b"\xe1":
            if data.startswith(_EXIF, body):
                found.exif = found.exif or data[body + len(_EXIF) : end]
            elif data.startswith(_XMP, body):
                found.xmp = found.xmp or data[body + len(_XMP) : end]
        elif marker == b"\xeb":  # JUMBF: its outermost box is described as c2pa
            found.c2pa = found.c2pa or b"c2pa\0" in data[body : min(end, body + 128)]
        elif marker == b"\xfe":
            _add_text(found, "", data[body:end])
        at = end


def _walk_png(data: bytes, found: Blobs) -> None:
    at = len(_PNG)
    left = 2 * _MOST_TEXT_BYTES
    for _ in range(_MOST_ENTRIES):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        body, end = at + 8, at + 8 + length
        match kind:
            case b"eXIf":
                found.exif = data[body:end][:_MOST_EXIF_BYTES].removeprefix(_EXIF)
            case b"caBX":
                found.c2pa = True
            case b"tEXt" | b"zTXt" | b"iTXt" if length <= _MOST_TEXT_BYTES and left > 0:
                keyword, text, cost = _png_text(kind, data[body:end])
                left -= cost
                if keyword == _XMP_KEYWORD:
                    found.xmp = found.xmp or text
                else:
                    _add_text(found, keyword, text)
            case b"IEND":
                return
        at = end + 4


def _png_text(kind: bytes, body: bytes) -> tuple[str, bytes, int]:
    """Keyword and text of a chunk, and the bytes gone through; no text where it is not whole."""
    keyword, _, text = body.partition(b"\0")
    is_packed, cost = kind == b"zTXt", len(body)
    if kind == b"iTXt":
        is_packed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif is_packed:
        text = text[1:]
    if is_packed:
        unpacker = zlib.decompressobj()
        most = min(_MOST_TEXT_BYTES, _MOST_UNPACKED * len(text))
        try:
            text = unpacker.decompress(text, _MOST_TEXT_BYTES)
            cost += len(text)
        except zlib.error:  # nobody says how far it came
            cost += most
        if not unpacker.eof:
            text = b""
    return keyword[:80].decode("latin-1"), text, cost


def _walk_webp(data: bytes, found: Blobs) -> None:
    at = 12
    for _ in range(_MOST_ENTRIES):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        body, end = at + 8, at + 8 + length
        match kind:
            case b"EXIF":
                found.exif = data[body:end][:_MOST_EXIF_BYTES].removeprefix(_EXIF)
            case b"XMP ":
                found.xmp = data[body:end][:_MOST_XMP_BYTES]
            case b"C2PA":
                found.c2pa = True
        at = end + length % 2


def _walk_tiff(data: bytes, found: Blobs) -> None:
    """The first directory, which holds the tags of EXIF as well."""
    found.exif = data
    tags = tiff.tags(data, {tiff.XMP, tiff.C2PA}, most_bytes=_MOST_XMP_BYTES)
    found.xmp = tags.get(tiff.XMP, b"")
    found.c2pa = tiff.C2PA in tags


class _Boxes:
    """AVIF and HEIC: items of the box meta, and C2PA's own box (ISO/IEC 14496-12)."""

    def __init__(self, data: bytes, found: Blobs) -> None:
        self._data = data
        self._found = found
        self._left = _MOST_ENTRIES

    def walk(self) -> None:
        """Find what the boxes hold."""
        for kind, body, end in self._boxes(0, len(self._data)):
            if kind == b"uuid" and self._data.startswith(_C2PA_BOX, body):
                self._found.c2pa = True
            elif kind == b"meta":
                self._walk_meta(body + 4, end)

    def _walk_meta(self, start: int, end: int) -> None:
        kinds: dict[int, bytes] = {}  # by item
        places: tuple[int, int] | None = None
        item_data = 0
        for kind, body, stop in self._boxes(start, end):
            if kind == b"iinf":
                first = body + (8 if self._number(body, 1) else 6)
                kinds = dict(self._kinds(first, stop))
            elif kind == b"iloc":
                places = body, stop
            elif kind == b"idat":
                item_data = body
        if kinds and places:
            self._read_items(kinds, *places, item_data)

    def _kinds(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Number and kind of each item that is EXIF or may be XMP."""
        for kind, body, stop in self._boxes(start, end):
            width = 4 if self._number(body, 1) > 2 else 2
            described = body + 6 + width
            item_type = self._data[described : described + 4]
            if kind == b"infe" and (
                item_type == b"Exif"
                or (item_type == b"mime" and b"application/rdf+xml" in self._data[described:stop])
            ):
                yield self._number(body + 4, width), item_type

    def _read_items(self, kinds: dict[int, bytes], at: int, end: int, item_data: int) -> None:
        """Follow the box iloc to items in one piece."""
        version, sizes = self._number(at, 1), self._number(at + 4, 2)
        offset_size, length_size, base_size, index_size = (sizes >> s & 15 for s in (12, 8, 4, 0))
        width = 4 if version == 2 else 2
        index_size = index_size if version else 0
        at += 6 + width
        missing = {b"Exif", b"mime"}
        while at < end and missing and self._left > 0:
            self._left -= 1
            item, at = self._number(at, width), at + width
            method = self._number(at, 2) & 15 if version else 0
            at += 2 if version else 0
            base, at = self._number(at + 2, base_size), at + 2 + base_size
            extents, at = self._number(at, 2), at + 2
            if extents == 1 and method <= 1 and (kind := kinds.get(item)) in missing:
                missing.remove(kind)
                offset = base + self._number(at + index_size, offset_size)
                offset += item_data if method else 0
                length = self._number(at + index_size + offset_size, length_size)
                self._take(kind, self._data[offset : offset + min(length, _MOST_XMP_BYTES)])
            at += extents * (index_size + offset_size + length_size)

    def _take(self, kind: bytes, item: bytes) -> None:
        if kind == b"Exif":  # where in it the TIFF structure begins comes first
            tiff_at = 4 + int.from_bytes(item[:4])
            self._found.exif = item[tiff_at:].removeprefix(_EXIF)
        else:
            self._found.xmp = item.removeprefix(_XMP)  # some phones write it as in a JPEG

    def _boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Kind, begin and end of the contents of each box."""
        while start + 8 <= end and self._left > 0:
            self._left -= 1
            size, kind, body = self._number(start, 4), self._data[start + 4 : start + 8], start + 8
            if size == 1:
                size, body = self._number(body, 8), body + 8
            stop = min(start + size, end) if size else end
            if stop < body:  # bytes after the last box
                return
            yield kind, body, stop
            start = stop

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size])


def _add_text(found: Blobs, keyword: str, text: bytes) -> None:
    """Keep the first text of a keyword, while there is room."""
    if text and keyword not in found.texts and len(found.texts) < _MOST_TEXTS:
        found.texts[keyword] = text[:_MOST_TEXT_BYTES].decode(errors="replace")
