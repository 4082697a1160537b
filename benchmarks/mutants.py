"""Damaged and hostile files, each made again by its number and a seed.

Of two mutants, one is blind: bytes are changed, cut, repeated and spliced wherever they lie. The
other knows its format: parts are changed, dropped, repeated, swapped and taken from other files,
and lengths, checksums, box sizes and offsets are written anew, so that what is hostile arrives at
the decoder behind them.
"""

import functools
import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.specimens import (
    SPECIMENS,
    TIFF_SIZES,
    Specimen,
    png_chunk,
    tiff_directory,
    tiff_header,
)

Order = Literal["big", "little"]
SIZES = ((96, 64), (128, 96))
"""Of the files that are damaged, pixels: small, so that hundreds are decoded in a second."""
_MOST_BYTES = 1 << 20  # of a mutant, about
_EXTREMES = (0, 1, 2, 3, 7, 15, 255)
_STRAY = 0.05  # of structured mutants, how many are cut off at their end, too


@dataclass(frozen=True, slots=True)
class Original:
    """A file to be damaged.

    Attributes:
        format: as `model.images.FORMATS` names it.
        name: of its variant and size.
        data: its bytes.
    """

    format: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Mutant:
    """A damaged file.

    Attributes:
        name: what it was made of, and how.
        format: of what it was made of.
        data: its bytes.
    """

    name: str
    format: str
    data: bytes


def originals(specimens: Sequence[Specimen] = SPECIMENS) -> list[Original]:
    """A file of each specimen in each of `SIZES`."""
    return [
        Original(specimen.format, f"{specimen} {width}x{height}", specimen.make(width, height))
        for specimen, (width, height) in itertools.product(specimens, SIZES)
    ]


class Mutants:
    """Mutants without end, of every format alike.

    Args:
        files: what is damaged.
        seed: another one gives others.
    """

    def __init__(self, files: Sequence[Original], seed: int) -> None:
        self._seed = seed
        self._files = {name: [f for f in files if f.format == name] for name in _names(files)}

    def __getitem__(self, number: int) -> Mutant:
        """The mutant of a number, whatever was asked for before."""
        rng = random.Random(f"{self._seed}/{number}")  # noqa: S311  (no secret)
        kin = self._files[rng.choice(list(self._files))]
        one, other = rng.choice(kin), rng.choice(kin)
        if number % 2:
            return Mutant(f"{one.name}, by its structure", one.format, _structured(rng, one, other))
        if rng.random() < 0.1:
            other = rng.choice(self._files[rng.choice(list(self._files))])
        return Mutant(f"{one.name}, blindly", one.format, _blind(rng, one.data, other.data))


def _names(files: Sequence[Original]) -> list[str]:
    return list(dict.fromkeys(file.format for file in files))


# --- blind --------------------------------------------------------------------------------------


def _blind(rng: random.Random, one: bytes, other: bytes) -> bytes:
    data = bytearray(one)
    for _ in range(_few(rng)):
        _BLIND[rng.randrange(len(_BLIND))](rng, data, other)
    return bytes(data[:_MOST_BYTES])


def _few(rng: random.Random) -> int:
    """One most often, up to sixteen."""
    return 1 << min(4, int(rng.expovariate(1)))


def _flip(rng: random.Random, data: bytearray, _other: bytes) -> None:
    for _ in range(_few(rng)):
        if data:
            data[_near_start(rng, len(data))] ^= 1 << rng.randrange(8)


def _set_number(rng: random.Random, data: bytearray, _other: bytes) -> None:
    size = rng.choice((1, 2, 2, 4, 4, 8))
    if len(data) >= size:
        at = _near_start(rng, len(data) - size + 1)
        _put(rng, data, at, size, rng.choice(("big", "little")))


def _truncate(rng: random.Random, data: bytearray, _other: bytes) -> None:
    del data[_near_start(rng, len(data) + 1) :]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data) + 1) :]
    data += other[rng.randrange(len(other) + 1) :]


def _repeat_piece(rng: random.Random, data: bytearray, _other: bytes) -> None:
    start, end = _piece(rng, len(data))
    times = rng.choice((1, 1, 2, 10, 200))
    data[end:end] = data[start:end] * min(times, _MOST_BYTES // (end - start + 1))


def _remove_piece(rng: random.Random, data: bytearray, _other: bytes) -> None:
    start, end = _piece(rng, len(data))
    del data[start:end]


def _overwrite(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, end = _piece(rng, len(other))
    at = rng.randrange(len(data) + 1)
    data[at : at + end - start] = other[start:end]


def _noise(rng: random.Random, data: bytearray, _other: bytes) -> None:
    start, end = _piece(rng, len(data))
    fill = rng.choice((bytes(1), b"\xff", b""))
    data[start:end] = fill * (end - start) or rng.randbytes(end - start)


_BLIND: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    _flip,
    _flip,
    _set_number,
    _set_number,
    _truncate,
    _splice,
    _repeat_piece,
    _remove_piece,
    _overwrite,
    _noise,
)


def _near_start(rng: random.Random, length: int) -> int:
    """A place below `length`: half of them among the first 200, where headers are."""
    return rng.randrange(min(length, 200) if rng.random() < 0.5 else length)


def _piece(rng: random.Random, length: int) -> tuple[int, int]:
    start = rng.randrange(length + 1)
    return start, min(length, start + 1 + int(rng.expovariate(1 / 64)))


def _put(rng: random.Random, data: bytearray, at: int, size: int, order: Order) -> None:
    """Write a number of `size` bytes: an extreme, or near what was there."""
    old = int.from_bytes(data[at : at + size], order)
    top = 1 << 8 * size
    new = rng.choice(
        (
            rng.choice(_EXTREMES),
            top - 1 - rng.choice(_EXTREMES),
            top // 2 - rng.randrange(2),
            1 << rng.randrange(8 * size),
            old + rng.choice((-2, -1, 1, 2)),
            old * rng.choice((2, 3, 16, 100)),
            old // rng.choice((2, 3, 16)),
            rng.randrange(top),
            rng.randrange(min(top, 1 << 14)),
        )
    )
    data[at : at + size] = (new % top).to_bytes(size, order)


# --- by structure -------------------------------------------------------------------------------


@dataclass(slots=True)
class Part:
    """A piece of a file that its format names.

    Attributes:
        kind: its name; empty where it has none.
        body: what it holds.
        parts: what it holds beyond that, where its format nests.
        size: bytes of the whole in the file that it comes from.
        rigid: its length stays, as others point into it.
    """

    kind: bytes
    body: bytearray
    parts: "list[Part]" = field(default_factory=list)
    size: int = 0
    rigid: bool = False

    def copy(self) -> "Part":
        """One that may be changed apart."""
        parts = [part.copy() for part in self.parts]
        return Part(self.kind, bytearray(self.body), parts, self.size, self.rigid)


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a format's files are taken apart and put together again.

    Attributes:
        split: a well-formed file's parts.
        join: a file of parts, with valid lengths, checksums and offsets.
        order: of its numbers' bytes; of a TIFF, the usual one.
        packed: where a part's body holds deflated bytes, from which byte on; None elsewhere.
    """

    split: Callable[[bytes], list[Part]]
    join: Callable[[list[Part]], bytes]
    order: Order
    packed: Callable[[Part], int | None] = lambda _: None


def _structured(rng: random.Random, one: Original, other: Original) -> bytes:
    grammar = GRAMMARS[one.format]
    parts, donors = _split(one), _flat(_split(other))
    for _ in range(_few(rng)):
        places = _flat(parts)
        if not places:
            break
        _change(rng, grammar, places[rng.randrange(len(places))], donors)
    data = grammar.join(parts)
    if rng.random() < _STRAY:
        data = data[: rng.randrange(len(data) + 1)]
    return data[: 2 * _MOST_BYTES]


@functools.lru_cache(maxsize=1024)
def _split_once(one: Original) -> list[Part]:
    return GRAMMARS[one.format].split(one.data)


def _split(one: Original) -> list[Part]:
    return [part.copy() for part in _split_once(one)]


Place = tuple[list[Part], int]


def _flat(parts: list[Part]) -> list[Place]:
    """Every part, however deep, by the list that holds it."""
    places: list[Place] = []
    for index, part in enumerate(parts):
        places += [(parts, index), *_flat(part.parts)]
    return places


def _change(rng: random.Random, grammar: Grammar, place: Place, donors: list[Place]) -> None:
    parts, index = place
    part = parts[index]
    foreign, at = donors[rng.randrange(len(donors))]
    gift = foreign[at]
    dice = rng.random()
    if dice < 0.5 or part.rigid:
        _change_body(rng, grammar, part, gift)
    elif dice < 0.6:
        del parts[index]
    elif dice < 0.7:
        times = rng.choice((1, 1, 1, 3, 30, 300))
        times = min(times, 1 + _MOST_BYTES // (4 * (part.size + len(part.body) + 64)))
        parts[index:index] = [part.copy() for _ in range(times)]
    elif dice < 0.78:
        another = rng.randrange(len(parts))
        parts[index], parts[another] = parts[another], part
    elif dice < 0.86:
        parts.insert(index, gift.copy())
    elif dice < 0.93:
        parts[index] = gift.copy()
    elif dice < 0.97:
        part.kind = gift.kind
    elif part.parts:
        part.parts = [gift.copy()]


def _change_body(rng: random.Random, grammar: Grammar, part: Part, gift: Part) -> None:
    body = part.body
    packed = grammar.packed(part)
    if packed is not None and rng.random() < 0.5:
        try:
            plain = bytearray(zlib.decompress(body[packed:]))
        except zlib.error:
            return
        _change_bytes(rng, plain, gift.body, grammar.order, rigid=False)
        body[packed:] = zlib.compress(plain, 1)
    else:
        _change_bytes(rng, body, gift.body, grammar.order, rigid=part.rigid)


def _change_bytes(
    rng: random.Random, body: bytearray, gift: bytes | bytearray, order: Order, *, rigid: bool
) -> None:
    dice = rng.random()
    if body and dice < 0.5:
        size = min(rng.choice((1, 1, 2, 2, 4, 8)), len(body))
        at = _near_start(rng, len(body) - size + 1)
        if rng.random() < 0.5:
            at -= at % size
        _put(rng, body, at, size, order)
    elif body and dice < 0.75:
        for _ in range(_few(rng)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    elif body and dice < 0.85:
        start, end = _piece(rng, len(body))
        body[start:end] = bytes(body[start:end][::-1])
    elif rigid:
        return
    elif dice < 0.9:
        del body[rng.randrange(len(body) + 1) :]
    elif dice < 0.95:
        start, end = _piece(rng, len(body))
        body[end:end] = body[start:end] * rng.choice((1, 2, 50))
    else:
        start, end = _piece(rng, len(gift))
        at = rng.randrange(len(body) + 1)
        body[at:at] = gift[start:end]


# --- PNG ----------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"


def _split_png(data: bytes) -> list[Part]:
    parts, at = [], len(_PNG)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        parts.append(Part(data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + length])))
        at += 12 + length
    return parts


def _join_png(parts: list[Part]) -> bytes:
    return _PNG + b"".join(png_chunk(part.kind, bytes(part.body)) for part in parts)


def _packed_png(part: Part) -> int | None:
    match part.kind:
        case b"IDAT":
            return 0
        case b"fdAT":
            return 4
        case b"iCCP" | b"zTXt":
            return part.body.find(0) + 2
        case b"iTXt" if begin := re.match(
            rb"[^\x00]*\x00\x01\x00[^\x00]*\x00[^\x00]*\x00", part.body
        ):
            return begin.end()
    return None


# --- JPEG ---------------------------------------------------------------------------------------

_SCAN_END = re.compile(rb"\xff[^\0\xd0-\xd7]")
_BARE_FF = re.compile(rb"\xff(?![\0\xd0-\xd7])")


def _split_jpeg(data: bytes) -> list[Part]:
    """Segments; what follows a scan's header, and what no marker begins, has no kind."""
    parts, at = [], 0
    while at < len(data):
        kind = data[at : at + 2]
        if kind[:1] != b"\xff" or len(kind) < 2 or kind[1] in (0, 255):
            parts.append(Part(b"", bytearray(data[at:])))
            break
        at += 2
        if 0xD0 <= kind[1] <= 0xD9:
            parts.append(Part(kind, bytearray()))
            continue
        length = int.from_bytes(data[at : at + 2])
        parts.append(Part(kind, bytearray(data[at + 2 : at + length])))
        at += length
        if kind[1] == 0xDA:
            match = _SCAN_END.search(data, at)
            end = match.start() if match else len(data)
            parts.append(Part(b"", bytearray(data[at:end])))
            at = end
    return parts


def _join_jpeg(parts: list[Part]) -> bytes:
    out = []
    for part in parts:
        if not part.kind:
            out.append(_BARE_FF.sub(b"\xff\0", part.body))
        elif 0xD0 <= part.kind[1] <= 0xD9:
            out.append(part.kind)
        else:
            body = part.body[:0xFFFD]
            out.append(part.kind + struct.pack(">H", len(body) + 2) + body)
    return b"".join(out)


# --- WebP ---------------------------------------------------------------------------------------

_FRAME_HEAD = 16  # of ANMF, before the chunks that it holds


def _split_riff(data: bytes) -> list[Part]:
    return _chunks(data[12:])


def _chunks(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"ANMF":
            parts.append(Part(kind, bytearray(body[:_FRAME_HEAD]), _chunks(body[_FRAME_HEAD:])))
        else:
            parts.append(Part(kind, bytearray(body)))
        at += 8 + length + length % 2
    return parts


def _join_riff(parts: list[Part]) -> bytes:
    body = b"WEBP" + b"".join(map(_chunk, parts))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(part: Part) -> bytes:
    body = bytes(part.body) + b"".join(map(_chunk, part.parts))
    return part.kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


# --- AVIF, HEIC ---------------------------------------------------------------------------------

# Boxes that hold others, and how many bytes of their own come first.
_HOLDERS = {
    b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"dinf": 0, b"edts": 0, b"iprp": 0,
    b"ipco": 0, b"meta": 4, b"iref": 4, b"iinf": 6, b"stsd": 8, b"dref": 8, b"av01": 78,
    b"hvc1": 78,
}  # fmt: skip


def _split_boxes(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + size if size else len(data)
        own = _HOLDERS.get(kind)
        if own is None:
            part = Part(kind, bytearray(data[at + 8 : end]))
        else:
            begin = at + 8 + own
            part = Part(kind, bytearray(data[at + 8 : begin]), _split_boxes(data[begin:end]))
        part.size, part.rigid = end - at, kind in (b"mdat", b"ftyp")
        parts.append(part)
        at = end
    return parts


def _join_boxes(parts: list[Part]) -> bytes:
    """Boxes that grew or shrank go to the end, so that what others point at stays in its place."""
    last = max((at for at, part in enumerate(parts) if part.kind == b"mdat"), default=-1)
    front, back = [], []
    for at, part in enumerate(parts):
        box = _box(part)
        if at < last and part.size and len(box) != part.size:
            front.append(struct.pack(">I4s", part.size, b"free") + bytes(part.size - 8))
            back.append(box)
        else:
            front.append(box)
    return b"".join(front + back)


def _box(part: Part) -> bytes:
    body = bytes(part.body)
    if part.kind in (b"iinf", b"stsd", b"dref"):  # how many follow
        width = 2 if part.kind == b"iinf" else 4
        count = min(len(part.parts), (1 << 8 * width) - 1)
        body = body[: max(0, len(body) - width)] + count.to_bytes(width)
    body += b"".join(map(_box, part.parts))
    return struct.pack(">I4s", len(body) + 8, part.kind) + body


# --- TIFF ---------------------------------------------------------------------------------------

_DIRECTORY = b"directory"


def _split_tiff(data: bytes) -> list[Part]:
    """The file as it is, which keeps its offsets; then its directories: type and values a tag."""
    parts = [Part(data[:4], bytearray(data), rigid=True)]
    order, big = ("<" if data[:2] == b"II" else ">"), data[2:4] in (b"+\0", b"\0+")
    head, entry, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    pointer = "Q" if big else "I"
    (at,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
    while at:
        (count,) = struct.unpack_from(order + head, data, at)
        at += struct.calcsize(order + head)
        tags = []
        for _ in range(count):
            tag, kind, length = struct.unpack_from(order + entry, data, at)
            where, length = at + 4 + room, length * TIFF_SIZES.get(kind, 1)
            if length > room:
                (where,) = struct.unpack_from(order + pointer, data, where)
            value = data[where : where + length]
            tags.append(Part(tag.to_bytes(2), bytearray(struct.pack(order + "H", kind)) + value))
            at += 4 + 2 * room
        parts.append(Part(_DIRECTORY, bytearray(), tags))
        (at,) = struct.unpack_from(order + pointer, data, at)
    return parts


def _join_tiff(parts: list[Part]) -> bytes:
    """The file as it was, and behind it the directories that count."""
    head = next((part for part in parts if part.rigid), None)
    if head is None:
        return b""
    order, big = ("<" if head.kind[:2] == b"II" else ">"), head.kind[2:4] in (b"+\0", b"\0+")
    out = bytes(head.body)
    out += bytes(len(out) % 2)
    directories = [part for part in parts if part is not head]
    out = tiff_header(order, len(out), big=big) + out[16 if big else 8 :]
    for left, part in zip(range(len(directories) - 1, -1, -1), directories, strict=True):
        entries = list(_entries(part, order))
        alone = tiff_directory(entries, len(out), order, big=big)
        after = len(out) + len(alone) if left else 0
        out += tiff_directory(entries, len(out), order, big=big, after=after)
    return out


def _entries(part: Part, order: str) -> Iterator[tuple[int, int, bytes]]:
    for tag in part.parts or [part]:
        if len(tag.body) >= 2:
            (kind,) = struct.unpack_from(order + "H", tag.body)
            yield int.from_bytes(tag.kind[:2]), kind, bytes(tag.body[2:])


# --- GIF ----------------------------------------------------------------------------------------

_FRAME, _COLOURS, _PIXELS, _APPLICATION = b",", b"colours", b"pixels", b"!\xff"


def _split_gif(data: bytes) -> list[Part]:
    parts = [Part(b"", bytearray(data[:13]))]
    at = 13

    def colours(flags: int) -> None:
        nonlocal at
        if flags & 0x80:
            length = 3 * (2 << (flags & 7))
            parts.append(Part(_COLOURS, bytearray(data[at : at + length])))
            at += length

    def blocks() -> bytearray:
        nonlocal at
        body = bytearray()
        while length := data[at]:
            body += data[at + 1 : at + 1 + length]
            at += 1 + length
        at += 1
        return body

    colours(data[10])
    while at < len(data):
        kind = data[at : at + 1]
        if kind == b"!":
            at += 2
            parts.append(Part(data[at - 2 : at], blocks()))
        elif kind == _FRAME:
            parts.append(Part(_FRAME, bytearray(data[at + 1 : at + 10])))
            at += 10
            colours(data[at - 1])
            at += 1
            parts.append(Part(_PIXELS, bytearray(data[at - 1 : at]) + blocks()))
        else:
            parts.append(Part(kind, bytearray()))
            at += 1
    return parts


def _join_gif(parts: list[Part]) -> bytes:
    out = []
    for part in parts:
        body = bytes(part.body)
        if part.kind == _PIXELS:
            out.append(body[:1] + _sub_blocks(body[1:]))
        elif part.kind == _APPLICATION:  # a name of eleven bytes, then what it says
            out.append(part.kind + _sub_blocks(body[:11])[:-1] + _sub_blocks(body[11:]))
        elif part.kind[:1] == b"!":
            out.append(part.kind + _sub_blocks(body))
        elif part.kind in (b"", _COLOURS):
            out.append(body)
        else:
            out.append(part.kind + body)
    return b"".join(out)


def _sub_blocks(body: bytes) -> bytes:
    pieces = (body[at : at + 255] for at in range(0, len(body), 255))
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


# --- BMP ----------------------------------------------------------------------------------------


def _split_bmp(data: bytes) -> list[Part]:
    head, pixels = 14 + int.from_bytes(data[14:18], "little"), int.from_bytes(data[10:14], "little")
    ends = (14, head, pixels, len(data))
    kinds = (b"header", b"colours", b"pixels")
    return [
        Part(kind, bytearray(data[start:end]))
        for kind, (start, end) in zip(kinds, itertools.pairwise(ends), strict=True)
    ]


def _join_bmp(parts: list[Part]) -> bytes:
    bodies = [bytes(part.body) for part in parts]
    before = 14 + sum(
        len(body) for part, body in zip(parts, bodies, strict=True) if part.kind != b"pixels"
    )
    if parts and parts[0].kind == b"header":
        bodies[0] = struct.pack("<I", len(bodies[0])) + bodies[0][4:]
    rest = b"".join(bodies)
    return struct.pack("<2sIII", b"BM", 14 + len(rest), 0, before) + rest


GRAMMARS: dict[str, Grammar] = {
    "JPEG": Grammar(_split_jpeg, _join_jpeg, "big"),
    "PNG": Grammar(_split_png, _join_png, "big", _packed_png),
    "WEBP": Grammar(_split_riff, _join_riff, "little"),
    "AVIF": Grammar(_split_boxes, _join_boxes, "big"),
    "HEIF": Grammar(_split_boxes, _join_boxes, "big"),
    "GIF": Grammar(_split_gif, _join_gif, "little"),
    "TIFF": Grammar(_split_tiff, _join_tiff, "little"),
    "BMP": Grammar(_split_bmp, _join_bmp, "little"),
}
"""By the name of the format."""
