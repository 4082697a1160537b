"""What a run on Ray stands on, without a cluster."""

from pathlib import Path

import pytest

from app.bulk import cluster
from app.bulk.ray_data import RayOptions, _device, _Ordered, _pool
from app.bulk.sources import Place, Sources, Span
from app.bulk.stages import FILES, Group, works_of
from app.bulk.store import BulkError
from app.settings import Settings


def test_works_hold_all_files_and_follow_each_other(tmp_path: Path) -> None:
    for name in (
        "a.tar",
        "b.tar",
        "z.tar",
        *(f"g{number:02}.png" for number in range(2 * FILES + 1)),
    ):
        (tmp_path / name).touch()
    sources = Sources([str(tmp_path)])
    works = [*works_of(sources, [])]
    assert [work.begin for work in works[1:]] == [work.end for work in works[:-1]]
    files = [listed.file.path for work in works for listed in work.files]
    assert files == [file.path for file in sources.files()]
    for work in works:
        shards = [listed for listed in work.files if listed.file.is_shard]
        assert len(work.files) <= FILES
        assert not shards or len(work.files) == 1
    assert (works[-1].files, works[-1].failure) == ((), None)


def test_a_listing_that_cannot_be_gone_on_with_says_so_behind_its_files(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\na.png\nb.png\n" + 'x"' * 200_000)
    *works, last = works_of(Sources([str(tmp_path / "list.csv")]), [])
    assert [len(work.files) for work in works] == [2]
    assert "cannot be read" in str(last.failure)
    done = [Span(Place(0), Place(1), "another")]
    [only] = works_of(Sources([str(tmp_path / "list.csv")]), done)
    assert "other files than before" in str(only.failure)


def groups(*numbers: int) -> list[Group]:
    marks = [("", 0), *((f"{n:02}", 0) for n in range(1, 9)), ("end", 0)]
    return [Group(marks[n], marks[n + 1]) for n in numbers]


def test_groups_come_out_in_order() -> None:
    ordered = _Ordered()
    out = [one for group in groups(2, 1, 0, 4, 3, 5, 8, 7, 6) for one in ordered.following(group)]
    assert out == groups(*range(9))
    assert ordered.works == 9
    ordered.check_complete()


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (0, 1, 3, 4, 5, 6, 7, 8)])
def test_a_group_that_is_missing_is_noticed(numbers: tuple[int, ...]) -> None:
    ordered = _Ordered()
    for group in groups(*numbers):
        [*ordered.following(group)]
    with pytest.raises(BulkError, match="run it again"):
        ordered.check_complete()


def test_a_group_that_comes_twice_is_noticed() -> None:
    ordered = _Ordered()
    first, second = groups(0, 1)
    [*ordered.following(first), *ordered.following(second)]
    [*ordered.following(first)]
    with pytest.raises(BulkError, match="run it again"):
        ordered.check_complete()
    with pytest.raises(BulkError, match="run it again"):
        [*ordered.following(first)]


def test_memory_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would take a disk."""
    monkeypatch.setattr(cluster, "_LEAST_STORE", 1 << 60)
    with pytest.raises(BulkError, match=r"shm has \d+ MiB left"):
        cluster._store_bytes()


def test_a_folder_of_another_run_is_left_alone() -> None:
    with cluster._folder() as mine:
        with cluster._folder() as other:
            assert mine.exists()
            assert other != mine
        assert mine.exists()
        assert not other.exists()
    assert not mine.exists()


@pytest.mark.parametrize(
    ("gpus", "device", "options", "pool"),
    [
        (0, "auto", RayOptions(), (2, 0)),
        (4, "auto", RayOptions(), (4, 1)),
        (4, "cpu", RayOptions(), (2, 0)),
        (4, "auto", RayOptions(gpus_per_actor=0.5), (8, 0.5)),
        (4, "auto", RayOptions(gpus_per_actor=0), (2, 0)),
        (4, "auto", RayOptions(actors=3), (3, 1)),
        (0, "auto", RayOptions(gpus_per_actor=1), None),
        (4, "auto", RayOptions(actors=5), None),
    ],
)
def test_how_many_actors_there_are(
    gpus: int,
    device: str,
    options: RayOptions,
    pool: tuple[int, float] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {}},
    ]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    settings = Settings(device=device)
    if pool is None:
        with pytest.raises(BulkError, match=f"there are {gpus} GPUs"):
            _pool(settings, options)
        monkeypatch.setenv("RAY_ADDRESS", "auto")  # more GPUs may come there, if so many are named
        if options.actors is not None:
            assert _pool(settings, options) == (5, 1)
    else:
        assert _pool(settings, options) == pool


@pytest.mark.parametrize(
    ("device", "each", "given", "expected"),
    [
        ("auto", None, 0, "auto"),
        ("auto", 0, 0, "cpu"),
        ("cuda", 0, 0, "cpu"),
        ("auto", None, 1, "cuda"),
        ("cuda:1", 0.5, 0.5, "cuda"),
        ("cpu", 0.5, 0.5, "cpu"),
    ],
)
def test_where_a_detector_runs(
    device: str, each: float | None, given: float, expected: str
) -> None:
    options = RayOptions(gpus_per_actor=each)
    assert _device(Settings(device=device), options, given) == expected
