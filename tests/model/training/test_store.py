"""What a tower gave is found again, image by image, and nothing else is."""

import fcntl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.data.copies import Canvas, Copy
from model.data.manifest import AI, Row
from model.training.store import Known, Store
from model.verdicts import Quality

WIDTH, LENGTH = 4, 2
IMAGES, SAVED = 6, 2
GONE = -1
UNREADABLE = 3  # the version of a file that is no image


def values(image: int, version: int | None) -> list[int]:
    """Of each canvas of an image one number, which float16 holds."""
    if version in (None, GONE, UNREADABLE):
        return []
    assert version is not None
    return [image * 128 + version * 8 + number for number in range(1 + image % 3)]


def known(versions: dict[int, int]) -> Known:
    stamps = [(version, version) for version in versions.values()]
    return Known(torch.tensor(list(versions)), torch.tensor(stamps).view(-1, 2))


@dataclass(slots=True)
class Given:
    """What a store gave, and what had to be computed for that."""

    columns: dict[str, Tensor]
    hidden: Tensor | None
    computed: list[int] = field(default_factory=list)

    def by_row(self, rows: int) -> list[list[int]]:
        """The numbers of each image's canvases, as every column has them."""
        numbers: list[list[int]] = [[] for _ in range(rows)]
        if self.columns:
            assert self.hidden is not None
            assert self.columns["row"].tolist() == sorted(self.columns["row"].tolist())
            of_place = self.hidden[self.columns["place"]]
            assert of_place.shape[1:] == (LENGTH, WIDTH)
            for row, kind, tokens, states, quality in zip(
                *(self.columns[name].tolist() for name in ("row", "kind")),
                self.columns["tokens"],
                of_place,
                self.columns["quality"],
                strict=True,
            ):
                number = int(tokens[0, 0])
                assert bool((tokens == number).all() and (states == number).all())
                assert (kind, quality.tolist()) == (number % 3, [number, 0.5, 1.5])
                numbers[row].append(number)
        return numbers


def ask(
    folder: Path,
    versions: dict[int, int],
    depth: int = 3,
    *,
    before_adding: Callable[[int], None] = lambda _: None,
) -> Given:
    """Ask a store for images by their versions, as an extraction does, a few at a time."""
    store, images = Store(folder, depth, WIDTH), known(versions)
    computed: list[int] = []
    with store.adding():
        missing = store.missing(images)
        for start in range(0, len(missing), SAVED):
            some = missing[start : start + SAVED]
            part = Known(images.ids[some], images.stamps[some])
            numbers, canvases = [], []
            for place, own in enumerate(part.ids.tolist()):
                computed.append(own)
                for number in values(own, versions[own]):
                    numbers.append(number)
                    quality = Quality(number, 0.5, 1.5)
                    canvases.append(Canvas(torch.empty(0), place, Copy(number % 3), quality))
            tokens = torch.tensor(numbers).half().view(-1, 1, 1)
            if numbers:
                store.add_hidden(tokens.expand(-1, LENGTH, WIDTH))
            before_adding(start // SAVED)
            store.add(part, [tokens.expand(-1, depth, WIDTH)] if numbers else [], canvases)
        columns = store.read(images)
    if columns:
        assert columns["tokens"].shape[1:] == (depth, WIDTH)
    return Given(columns, store.states() if columns else None, computed)


def killed_before(part: int) -> Callable[[int], None]:
    """When the part's hidden states are there, and the part is not."""

    def kill(index: int) -> None:
        if index == part:
            raise KeyboardInterrupt

    return kill


@dataclass(frozen=True, slots=True)
class Step:
    """What is asked for, after some files have changed, while some are gone.

    Attributes:
        asked: images, in the list's order.
        changed: these are new versions.
        gone: these are not there.
        depth: blocks.
        killed: the part before which it is killed; None: it is not.
    """

    asked: Sequence[int]
    changed: frozenset[int]
    gone: frozenset[int]
    depth: int
    killed: int | None


some_images = st.frozensets(st.integers(0, IMAGES - 1), max_size=3)
STEPS = st.builds(
    Step,
    asked=st.lists(st.integers(0, IMAGES - 1), min_size=1, unique=True),
    changed=some_images,
    gone=some_images,
    depth=st.integers(1, 3),
    killed=st.none() | st.integers(0, 2),
)


@given(st.lists(STEPS, max_size=8))
@settings(deadline=None)
def test_whatever_was_asked_before_each_image_is_read_as_it_is(steps: list[Step]) -> None:
    """As it is now, or where its file is gone, as it was last; and only what is new is computed."""
    version = dict.fromkeys(range(IMAGES), 0)
    before: list[tuple[int, int, int]] = []  # image, version and depth of what was computed

    def last(image: int, depth: int) -> int | None:
        found = [v for own, v, d in before if own == image and d >= depth]
        return found[-1] if found else None

    with TemporaryDirectory() as folder:
        for step in steps:
            for image in step.changed:
                version[image] += 1
            asked = {image: GONE if image in step.gone else version[image] for image in step.asked}
            stored = {image: last(image, step.depth) for image in asked}
            new = [
                image
                for image, now in asked.items()
                if stored[image] is None or now not in (GONE, stored[image])
            ]
            if step.killed is not None and len(new) > SAVED * step.killed:
                with pytest.raises(KeyboardInterrupt):
                    ask(Path(folder), asked, step.depth, before_adding=killed_before(step.killed))
                done = new[: SAVED * step.killed]
            else:
                given = ask(Path(folder), asked, step.depth)
                assert given.computed == new
                seen = {
                    image: stored[image] if now == GONE else now for image, now in asked.items()
                }
                assert given.by_row(len(asked)) == [values(*pair) for pair in seen.items()]
                done = new
            before += [(image, asked[image], step.depth) for image in done if asked[image] != GONE]


def hidden_file(folder: Path) -> list[int]:
    """The number of each canvas whose hidden states there are."""
    data = (folder / "hidden").read_bytes()
    flat = torch.frombuffer(bytearray(data), dtype=torch.float16).view(-1, LENGTH * WIDTH)
    assert bool((flat == flat[:, :1]).all())
    return flat[:, 0].int().tolist()


def test_what_was_killed_between_hidden_states_and_part_leaves_no_gap(tmp_path: Path) -> None:
    versions = dict.fromkeys(range(6), 0)
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, versions, before_adding=killed_before(1))
    assert hidden_file(tmp_path) == [n for image in range(4) for n in values(image, 0)]
    with (tmp_path / "hidden").open("ab") as file:
        file.write(b"\0")  # and in the middle of the next batch
    given = ask(tmp_path, versions)
    assert given.computed == [2, 3, 4, 5]
    assert given.by_row(6) == [values(image, 0) for image in range(6)]
    assert hidden_file(tmp_path) == [n for image in range(6) for n in values(image, 0)]


@pytest.mark.parametrize(
    ("loss", "again"),
    [("hidden", [0, 1, 2, 3, 4, 5]), ("a batch", [4, 5]), ("1", [2, 3, 4, 5]), (None, [])],
)
def test_what_lost_its_hidden_states_is_computed_again(
    tmp_path: Path, loss: str | None, again: list[int]
) -> None:
    """As is what comes after a part that is gone: where its states are cannot be told."""
    versions = dict.fromkeys(range(6), 0)
    ask(tmp_path, versions)
    hidden = tmp_path / "hidden"
    if loss == "hidden":
        hidden.unlink()
    elif loss == "a batch":
        hidden.write_bytes(hidden.read_bytes()[:-1])
    elif loss:
        (tmp_path / f"{loss}.safetensors").unlink()
    given = ask(tmp_path, versions)
    assert given.computed == again
    assert given.by_row(6) == [values(image, 0) for image in range(6)]
    assert ask(tmp_path, versions).computed == []


def test_what_came_after_a_part_that_is_gone_does_not_come_back(tmp_path: Path) -> None:
    ask(tmp_path, {0: 0, 3: 0, 6: 0, 9: 0, 12: 0})
    (tmp_path / "1.safetensors").unlink()
    assert ask(tmp_path, {2: 0, 5: 0}).computed == [2, 5]
    given = ask(tmp_path, {12: 0, 2: 0, 5: 0})
    assert given.computed == [12]
    assert given.by_row(3) == [values(12, 0), values(2, 0), values(5, 0)]


def test_a_changed_image_has_its_own_hidden_states_and_others_keep_theirs(tmp_path: Path) -> None:
    first = ask(tmp_path, {0: 0, 1: 0, 2: 0})
    given = ask(tmp_path, {2: 0, 1: 1, 0: 0, 4: 0})
    assert given.computed == [1, 4]
    assert given.by_row(4) == [values(2, 0), values(1, 1), values(0, 0), values(4, 0)]
    assert first.by_row(3) == [values(0, 0), values(1, 0), values(2, 0)]  # a run still reads them
    assert ask(tmp_path, {1: 0}).computed == [1]  # and back again


def test_nothing_is_kept_of_files_that_were_not_there(tmp_path: Path) -> None:
    """Neither that they gave nothing, nor a part for every time that they were asked for."""
    for _ in range(2):
        assert ask(tmp_path, {0: GONE, 1: GONE}).columns == {}
    assert not list(tmp_path.glob("*.safetensors"))
    assert ask(tmp_path, {0: 0, 1: GONE}, depth=1).by_row(2) == [values(0, 0), []]
    assert ask(tmp_path, {0: GONE}, depth=3).columns == {}  # as deep, it never was
    assert ask(tmp_path, {0: GONE}, depth=1).by_row(1) == [values(0, 0)]
    assert ask(tmp_path, {1: 0}, depth=1).computed == [1]


def test_two_at_once_compute_every_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, both, calls = fcntl.flock, threading.Event(), []

    def noted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            both.set()
        lock(*arguments)

    def wait_for_both(_: int) -> None:
        assert both.wait(20)

    monkeypatch.setattr(fcntl, "flock", noted)
    lists = ({0: 0, 1: 0}, {1: 0, 0: 0, 5: 0})
    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(ask, tmp_path, of, before_adding=wait_for_both) for of in lists]
        given = [future.result() for future in work]
    assert sorted(image for of in given for image in of.computed) == [0, 1, 5]
    for of, versions in zip(given, lists, strict=True):
        assert of.by_row(len(versions)) == [values(*pair) for pair in versions.items()]


def test_an_image_is_known_by_its_place_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/a"):
        (tmp_path / name).write_bytes(b"four")
    monkeypatch.chdir(tmp_path)
    names = (Path("a"), tmp_path / "a", tmp_path / "sub/../a", Path("sub/a"), Path("none"))
    rows = [Row(name, AI, "g", "o") for name in names]
    images = Known.of(rows)
    assert len(set(images.ids.tolist())) == 3
    assert len(set(images.ids[:3].tolist())) == 1
    status = Path("a").stat()
    assert images.stamps[0].tolist() == [4, status.st_mtime_ns]
    assert images.stamps[4].tolist() == [GONE, GONE]
    nothing = Known.of([])
    assert (nothing.ids.dtype, nothing.stamps.dtype) == (torch.int64, torch.int64)
