"""The size that an AVIF is decoded at, which need not be the size that its container declares.

libavif decodes whatever was coded, then scales it to the declared size. So the AV1 sequence headers
are read here: of every image that the container holds, and of each track's first frame. What cannot
be read is refused, as it would be decoded unchecked.
"""

from collections.abc import Callable, Iterator

from model.errors import ImageError
from model.images.picture import Limits

# Boxes, items, extents and units together: a grid of a thousand tiles takes 6,000.
_STEPS = 50_000
# Colour, alpha, gain map and thumbnail may each have as many pixels as one image.
_IMAGES = 4
_UNIQUE = (b"iinf", b"iloc", b"idat", b"stsd", b"stsz", b"stco", b"co64")
_TO_SAMPLES = (b"trak", b"mdia", b"minf", b"stbl")


def check_coded_size(data: bytes, limits: Limits) -> None:
    """Hold the coded size of every image in an AVIF against `max_pixels`.

    Args:
        data: the file; its declared size is within the limit.
        limits: `max_pixels` of one image; all together may have four times as many.

    Raises:
        ImageError: too_many_pixels, corrupt_image.
    """
    try:
        images = _Container(data).sizes()
        largest = max(images)
    except (ValueError, IndexError, KeyError):
        raise ImageError(
            "corrupt_image", "The AVIF does not say how large its pictures are."
        ) from None
    if largest > limits.max_pixels or sum(images) > _IMAGES * limits.max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"An image may have {limits.max_pixels} pixels at most, as it was coded.",
        )


class _Container:
    """A walk through boxes (ISO/IEC 14496-12, 23008-12) that ends soon, whatever they say.

    Raises:
        ValueError, IndexError, KeyError: from every method, where the file cannot be understood.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps_left = _STEPS
        self._bytes_left = 2 * len(data)  # items may share bytes, but not all of them all

    def sizes(self) -> list[int]:
        """Pixels of each coded image."""
        images: list[int] = []
        for kind, start, end in self._boxes(0, len(self._data)):
            if kind == b"meta":
                images += map(self._coded_pixels, self._items(start + 4, end))
            elif kind == b"moov":
                images += map(self._coded_pixels, self._first_frames(start, end, _TO_SAMPLES))
        return images

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise ValueError

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size])

    def _slice(self, start: int, length: int) -> bytes:
        part = self._data[start : start + length]
        self._bytes_left -= len(part)
        if self._bytes_left < 0:
            raise ValueError
        return part

    def _boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Kind, begin and end of the contents of each box."""
        while start + 8 <= end:
            self._step()
            size, kind, body = self._number(start, 4), self._data[start + 4 : start + 8], start + 8
            if size == 1:
                size, body = self._number(body, 8), body + 8
            stop = min(start + size, end) if size else end
            if stop < body:  # bytes after the last box
                return
            yield kind, body, stop
            start = stop

    def _unique(self, start: int, end: int) -> dict[bytes, tuple[int, int]]:
        """Where the boxes are that matter: of two, one could be checked and the other decoded."""
        places: dict[bytes, tuple[int, int]] = {}
        for kind, begin, stop in self._boxes(start, end):
            if kind in places and kind in _UNIQUE:
                raise ValueError
            places[kind] = (begin, stop)
        return places

    def _items(self, start: int, end: int) -> Iterator[bytes]:
        """The data of each item of AV1."""
        boxes = self._unique(start, end)
        if b"iinf" not in boxes or b"iloc" not in boxes:
            return
        begin, stop = boxes[b"iinf"]
        coded = set()
        for kind, at, _ in self._boxes(begin + (8 if self._number(begin, 1) else 6), stop):
            wide = self._number(at, 1) > 2  # the version
            if kind == b"infe" and self._data[at + (10 if wide else 8) :][:4] == b"av01":
                coded.add(self._number(at + 4, 4 if wide else 2))
        for item, extents in self._places(*boxes[b"iloc"], boxes.get(b"idat", (0, 0))[0]):
            if item in coded:
                coded.remove(item)
                yield b"".join(self._slice(*extent) for extent in extents)
        if coded:
            raise ValueError

    def _places(self, at: int, end: int, idat: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Each item's number, with offset and length of its extents, by the box iloc."""
        version, sizes = self._number(at, 1), self._number(at + 4, 2)
        offset_size, length_size, base_size, index_size = (sizes >> s & 15 for s in (12, 8, 4, 0))
        width = 4 if version == 2 else 2
        count, at = self._number(at + 6, width), at + 6 + width
        for _ in range(count):
            self._step()
            item, at = self._number(at, width), at + width
            base = idat if version and self._number(at, 2) & 15 == 1 else 0
            at += 4 if version else 2
            base, at = base + self._number(at, base_size), at + base_size
            extents, at = self._number(at, 2), at + 2
            places = []
            for _ in range(extents):
                self._step()
                at += index_size if version else 0
                offset, at = base + self._number(at, offset_size), at + offset_size
                length, at = self._number(at, length_size), at + length_size
                places.append((offset, length or len(self._data)))
            if at > end:
                raise ValueError
            yield item, places

    def _first_frames(self, start: int, end: int, path: tuple[bytes, ...]) -> Iterator[bytes]:
        """The data of the first frame of each track of AV1."""
        if path:
            for kind, begin, stop in self._boxes(start, end):
                if kind == path[0]:
                    yield from self._first_frames(begin, stop, path[1:])
            return
        boxes = self._unique(start, end)
        if self._data[boxes[b"stsd"][0] + 12 :][:4] != b"av01":
            return
        sizes = boxes[b"stsz"][0]
        length = self._number(sizes + 4, 4) or self._number(sizes + 12, 4)
        if (b"stco" in boxes) == (b"co64" in boxes):
            raise ValueError
        offset = (
            self._number(boxes[b"co64"][0] + 8, 8)
            if b"co64" in boxes
            else self._number(boxes[b"stco"][0] + 8, 4)
        )
        yield self._slice(offset, length)

    def _coded_pixels(self, image: bytes) -> int:
        """The most that a sequence header among the image's units ("OBUs") allows."""
        at, pixels = 0, 0
        while at < len(image):
            self._step()
            head = image[at]
            at += 2 if head & 4 else 1  # with an extension
            size = len(image) - at
            if head & 2:  # its size is given, seven bits a byte
                size = 0
                for shift in range(0, 56, 7):
                    byte, at = image[at], at + 1
                    size |= (byte & 127) << shift
                    if byte < 128:
                        break
            if head >> 3 & 15 == 1:
                pixels = max(pixels, _sequence_pixels(image[at : at + min(size, 1024)]))
            at += size
        if not pixels:
            raise ValueError
        return pixels


def _sequence_pixels(header: bytes) -> int:
    """The largest width x height of a frame: AV1 specification, section 5.5."""
    number, left = int.from_bytes(header), 8 * len(header)

    def take(bits: int) -> int:
        nonlocal left
        left -= bits
        return number >> left & (1 << bits) - 1  # ValueError beyond the end

    take(4)  # profile, still picture
    if take(1):  # a reduced header
        take(5)
    else:
        delay = _skip_timing(take)
        displayed = take(1)
        for _ in range(take(5) + 1):  # operating points
            take(12)
            if take(5) > 7:  # the level has tiers
                take(1)
            if delay and take(1):
                take(2 * delay + 1)
            if displayed and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return (take(width_bits) + 1) * (take(height_bits) + 1)


def _skip_timing(take: Callable[[int], int]) -> int:
    """Read past timing and decoder model; the bits of a buffer delay, 0 without a model."""
    if not take(1):
        return 0
    take(64)
    if take(1):  # equal intervals: a length in unary, then so many bits
        zeros = 0
        while zeros < 32 and not take(1):
            zeros += 1
        take(zeros if zeros < 32 else 0)
    if not take(1):
        return 0
    delay = take(5) + 1
    take(42)
    return delay
