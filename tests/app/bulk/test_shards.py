"""Shards: whole, cut off, and made by somebody who means ill."""

import io
import tarfile
from collections.abc import Callable

import pytest

from app.bulk.shards import Member, members

MOST = 10_000


def shard(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def read(data: bytes, wanted: Callable[[int], bool] = lambda _: True) -> list[Member]:
    return list(members(io.BytesIO(data), wanted, MOST))


def patched(data: bytes, offset: int, field: bytes) -> bytes:
    """A shard whose first header has other bytes there, and the sum that fits them."""
    header = bytearray(data[:512])
    header[offset : offset + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


IMAGES = (("a/1.jpg", b"one"), ("a/2.PNG", b"two" * 300), ("a/3.webp", b"three"))


def test_images_are_given_in_order_and_nothing_else() -> None:
    others = (("1.json", b"{}"), ("._1.jpg", b"x"), ("1.cls", b"0"))
    mixed = [file for pair in zip(IMAGES, others, strict=True) for file in pair]
    assert [(m.name, m.data) for m in read(shard(*mixed))] == list(IMAGES)
    assert [m.number for m in read(shard(*mixed))] == [0, 1, 2]
    assert read(shard()) == []


def test_links_and_folders_are_no_images() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("a.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert read(buffer.getvalue()) == []


def test_what_is_not_wanted_is_not_read() -> None:
    class Watched(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Watched.taken += len(data)
            return data

    data = shard(*((f"{number}.jpg", bytes(9_000)) for number in range(20)))
    [only] = members(Watched(data), lambda number: number == 13, MOST)
    assert (only.number, only.name, only.data) == (13, "13.jpg", bytes(9_000))
    assert Watched.taken < 40_000


def test_an_image_that_is_too_large_shows_it_and_is_not_read_whole() -> None:
    data = shard(("a.jpg", bytes(5 * MOST)), *IMAGES)
    first, *rest = read(data)
    assert first.data == bytes(MOST + 1)
    assert [m.data for m in rest] == [data for _, data in IMAGES]


def test_wherever_it_is_cut_that_is_told_and_what_came_before_is_given() -> None:
    data = shard(*IMAGES)
    end = len(data.rstrip(b"\0"))
    given = []
    for size in range(0, end + 400, 64):  # up to the middle of the blocks that end it
        found: list[Member] = []
        with pytest.raises(tarfile.TarError):
            found.extend(members(io.BytesIO(data[:size]), lambda _: True, MOST))
        whole = [(m.name, m.data) for m in found if m.data is not None]
        assert whole == list(IMAGES[: len(whole)])
        assert len(found) - len(whole) <= 1
        given.append(len(whole))
    assert given == sorted(given)
    assert given[-1] == 3


def test_a_header_that_is_none_is_no_end() -> None:
    data = shard(*IMAGES)
    second = 2 * tarfile.BLOCKSIZE
    broken = data[:second] + b"junk" * 128 + data[second + 512 :]
    found = members(io.BytesIO(broken), lambda _: True, MOST)
    assert next(found).name == "a/1.jpg"
    with pytest.raises(tarfile.ReadError):
        next(found)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
@pytest.mark.parametrize(
    "size", [b"\xff" * 10 + b"\xfe\x00", b"77777777777\0", b"\x80" + b"\xff" * 11]
)
def test_sizes_that_lie_end_the_shard(kind: bytes, size: bytes) -> None:
    """Below zero, the archive would lead back to where it came from, for ever."""
    data = patched(patched(shard(*IMAGES), 124, size), 156, kind)
    with pytest.raises((tarfile.TarError, ValueError, OverflowError)):
        read(data)


def long_name(name: bytes) -> bytes:
    """A GNU header that gives the next member's name, and that member."""
    with_nul = name + b"\0"
    head = tarfile.TarInfo("././@LongLink")
    head.size, head.type = len(with_nul), tarfile.GNUTYPE_LONGNAME
    return (
        head.tobuf(tarfile.GNU_FORMAT) + with_nul + bytes(-len(with_nul) % 512) + shard(("x", b""))
    )


def global_headers(names: int, value: str = "") -> bytes:
    """PAX headers that hold for all that follow."""
    header = tarfile.TarInfo.create_pax_global_header({f"k{n}": value for n in range(names)})
    return header + shard(*IMAGES)


def sparse_map(blocks: int) -> bytes:
    """An old GNU sparse member whose map has so many blocks behind its header."""
    data = patched(patched(shard(("a.jpg", b"")), 156, b"S"), 482, b"\1" + b"0" * 11)
    block = b"%011o\0" % 1 * 42 + b"\1" + bytes(7)
    return data[:512] + block * blocks + data[512:]


@pytest.mark.parametrize(
    "data",
    [
        long_name(b"a" * 5000 + b".jpg"),
        long_name(b"a" * (2 << 20) + b".jpg"),
        global_headers(1000),
        global_headers(50, "v" * 30_000),
        sparse_map(4000),
    ],
    ids=["name", "long name", "globals", "large globals", "sparse"],
)
def test_headers_that_cost_more_than_their_image_end_the_shard(data: bytes) -> None:
    """Names are held until their part is full; each member is gone through by every global one."""
    with pytest.raises(tarfile.ReadError, match="headers are too large"):
        list(members(io.BytesIO(data), lambda _: True, 8 << 20))


def test_headers_that_are_usual_are_read() -> None:
    assert [m.name for m in read(long_name(b"d/" * 500 + b"a.jpg"))] == ["d/" * 500 + "a.jpg"]
    assert [m.name for m in read(global_headers(3))] == [name for name, _ in IMAGES]
