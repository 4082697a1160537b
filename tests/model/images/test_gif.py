import struct
from collections.abc import Callable

import numpy as np
import pytest

from model.errors import ImageError
from model.images import Limits, decode
from tests.images import encoded, photo

LIMITS = Limits(max_pixels=100_000)
FRAME = struct.Struct("<cHHHHB")


def image_block(left: int, top: int, width: int, height: int) -> bytes:
    return FRAME.pack(b",", left, top, width, height, 0) + b"\x02\x02\x44\x01\x00"


def gif(*blocks: bytes) -> bytes:
    """A GIF of 64 x 64 without colours."""
    return struct.pack("<6sHHBBB", b"GIF89a", 64, 64, 0, 0, 0) + b"".join(blocks) + b";"


DISPOSE = b"!\xf9\x04\x08\0\0\0\0"
BOMBS: dict[str, Callable[[], bytes]] = {
    "screen": lambda: struct.pack("<6sHHBBB", b"GIF89a", 65535, 65535, 0, 0, 0),
    "frame": lambda: gif(image_block(0, 0, 65535, 65535)),
    "disposed frame": lambda: gif(DISPOSE, image_block(0, 0, 65535, 65535)),
    "second frame": lambda: gif(image_block(0, 0, 64, 64), image_block(0, 0, 65535, 65535)),
    "place of a frame": lambda: gif(image_block(65535, 65535, 1, 1)),
    "frames together": lambda: gif(image_block(0, 0, 65535, 1), image_block(0, 0, 1, 65535)),
    "after comments": lambda: gif(b"!\xfe\x01a\x00junk", image_block(0, 0, 65535, 65535)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_all_frames_come_to_is_held_against_the_limit(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(BOMBS[name](), LIMITS)
    assert caught.value.code == "too_many_pixels"


def test_an_animation_is_read_without_its_end_and_with_broken_later_frames() -> None:
    data = encoded(photo(), "GIF", save_all=True, append_images=[photo(seed=1)])
    first = decode(data, LIMITS).pixels
    second = data.index(b",", len(data) // 2 + 200)
    assert np.array_equal(decode(data[:-1], LIMITS).pixels, first)
    for cut in range(second, second + 9):
        assert np.array_equal(decode(data[:cut], LIMITS).pixels, first)
    still = encoded(photo(), "GIF")
    assert np.array_equal(decode(still[:-1], LIMITS).pixels, decode(still, LIMITS).pixels)
    with pytest.raises(ImageError) as caught:
        decode(still[: len(still) // 2], LIMITS)
    assert caught.value.code == "corrupt_image"
