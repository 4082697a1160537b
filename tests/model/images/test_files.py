"""Files on a disk, as `read_file` and so `read_picture` take them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model.images import ImageError, Limits, read_file, read_picture
from tests.images import jpeg


@pytest.mark.parametrize("read", [read_file, read_picture])
def test_what_is_no_regular_file_is_not_opened(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    """To open a pipe into which nobody writes would take for ever."""
    pipe, link = tmp_path / "pipe.jpg", tmp_path / "link.jpg"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/zero")):
        with pytest.raises(ImageError, match=r"^It is not a regular file\.$") as caught:
            read(path)
        assert caught.value.code == "unreadable"


def test_of_a_film_no_more_is_read_than_shows_its_size(tmp_path: Path) -> None:
    film, image = tmp_path / "film.jpg", tmp_path / "image.jpg"
    with film.open("wb") as file:
        file.truncate(1 << 40)
    assert len(read_file(film, Limits(max_bytes=1000))) == 1001
    image.write_bytes(jpeg())
    assert read_file(image) == jpeg()
