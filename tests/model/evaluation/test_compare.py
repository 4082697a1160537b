import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.data.manifest import AI, REAL, ManifestError, Row
from model.detector import Detector, Look
from model.errors import ImageTooSmallError, ModelError
from model.evaluation.compare import (
    AI_IMAGES,
    MADE,
    PHOTOGRAPHS,
    UNLABELLED,
    Answer,
    Changes,
    Pair,
    compare,
    list_images,
)
from model.images import read_picture
from model.verdicts import Verdict
from tests.conftest import CPU
from tests.images import photo


@pytest.fixture
def twice(telling: Path, tiny_tower: Path) -> Detector:
    """It looks at the whole image first; the other checkpoint at patches alone."""
    return Detector.load(telling, backbone=tiny_tower, runtime=CPU)


def is_of(answer: Answer, detector: Detector, path: Path) -> bool:
    """Whether a detector that is shown nothing else says the same."""
    picture = read_picture(path)
    [alone] = detector.detect([picture.pixels])
    return (
        answer.verdict is alone.verdict
        and abs(answer.score - alone.score) < 1e-5
        and answer.warnings == (*picture.facts.warnings, *alone.warnings)
    )


def test_each_checkpoint_answers_as_it_does_alone(
    toned: list[Row], detector: Detector, twice: Detector, tmp_path: Path
) -> None:
    moving = tmp_path / "moving.gif"
    photo().save(moving, save_all=True, append_images=[photo(seed=1)])
    images: dict[Path, Row | None] = {moving: None, **{row.path: row for row in toned[:10]}}
    compared = compare(images, detector, twice)
    assert [pair.path for pair in compared.pairs] == list(images)
    assert [pair.row for pair in compared.pairs] == list(images.values())
    for pair in compared.pairs:
        assert is_of(pair.old, detector, pair.path)
        assert is_of(pair.new, twice, pair.path)
    assert "animation" in compared.pairs[0].old.warnings
    assert any(pair.changed for pair in compared.pairs)
    assert len({pair.new.verdict for pair in compared.pairs}) > 1
    assert compared.skipped == {}


def test_a_checkpoint_changes_nothing_beside_itself(toned: list[Row], detector: Detector) -> None:
    compared = compare({row.path: row for row in toned[:10]}, detector, detector)
    assert list(compared.by_class) == [PHOTOGRAPHS, AI_IMAGES]
    for part in compared.by_class.values():
        assert (part.changed, part.reversed, part.score) == (0, 0, 0)


def test_what_either_refuses_is_counted_by_its_reason(
    detector: Detector, twice: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("good.png", "small.png", "broken.png", "text.png")
    good, small, broken, text = paths = [tmp_path / name for name in names]
    photo(100, 90).save(good)
    photo(100, 40).save(small)
    broken.write_bytes(good.read_bytes()[:500])
    text.write_text("no image")
    images: dict[Path, Row | None] = dict.fromkeys([*paths, tmp_path / "none.png"])
    skipped = {"corrupt_image": 1, "unreadable": 1, "unsupported_media_type": 1}
    assert compare(images, detector, detector).skipped == skipped

    def choosy(pixels: NDArray[np.uint8]) -> Look:
        if min(pixels.shape[:2]) < 50:
            raise ImageTooSmallError(100, 40, 50)
        return look(pixels)

    look = twice.look
    monkeypatch.setattr(twice, "look", choosy)
    for old, new in ((detector, twice), (twice, detector)):
        compared = compare(images, old, new)
        assert [pair.path for pair in compared.pairs] == [good]
        assert compared.skipped == {**skipped, "image_too_small": 1}
    with pytest.raises(ModelError, match=r"no image could be scored: .*unsupported_media_type"):
        compare({text: None}, detector, detector)


def pair(old: Verdict, new: Verdict, change: float = 0.0, row: Row | None = None) -> Pair:
    return Pair(Path("x"), row, Answer(old, 0.5, ()), Answer(new, 0.5 + change, ()))


def test_changes_are_counted_by_kind() -> None:
    real, doubt, ai = Verdict.REAL, Verdict.UNCERTAIN, Verdict.AI_GENERATED
    changes = Changes.of(
        [
            pair(real, real),
            pair(real, ai, 0.4),
            pair(ai, real, -0.2),
            pair(ai, doubt, -0.2),
            pair(doubt, doubt),
        ]
    )
    assert changes.images == 5
    assert changes.verdicts == Counter(
        {(real, real): 1, (real, ai): 1, (ai, real): 1, (ai, doubt): 1, (doubt, doubt): 1}
    )
    assert changes.changed == 3 / 5
    assert changes.reversed == 2 / 5
    assert changes.score == pytest.approx(0.8 / 5)


@pytest.mark.parametrize(
    ("row", "of"),
    [
        (None, UNLABELLED),
        (Row(Path("x"), AI, "g", "o", "art"), AI_IMAGES),
        (Row(Path("x"), REAL, "g", "o", "art"), MADE),
        (Row(Path("x"), REAL, "g", "o", "photo"), PHOTOGRAPHS),
        (Row(Path("x"), REAL, "g", "o"), PHOTOGRAPHS),
    ],
)
def test_images_are_told_apart_by_their_labels(row: Row | None, of: str) -> None:
    assert pair(Verdict.REAL, Verdict.REAL, row=row).image_class == of


def test_images_of_any_folder_and_of_manifests_are_listed_once(tmp_path: Path) -> None:
    for name in ("a/b/c.JPG", "top.webp", "a/.hidden.png", ".cache/d.png", "a/notes.txt", "e.heic"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    manifest = tmp_path / "photographs.csv"  # of one class alone
    manifest.write_text(
        "path,label,group,split\nalbum/top.webp,real,cam,val\nalbum/e.heic,real,cam,train\n"
    )
    album = tmp_path / "album"
    alone = [album / "a/b/c.JPG", album / "e.heic", album / "top.webp"]
    assert list_images([album]) == dict.fromkeys(alone)
    row = Row(album / "top.webp", REAL, "cam", "cam")
    linked = tmp_path / "a" / ".." / "album"
    (tmp_path / "a").mkdir()
    for paths in ([manifest, album, linked], [album, linked, manifest]):
        listed = list_images(paths, "val")
        assert {os.path.normpath(path): what for path, what in listed.items()} == {
            str(alone[0]): None,
            str(alone[1]): None,
            str(alone[2]): row,
        }
    assert len(list_images([manifest])) == 2


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no images"):
        list_images([tmp_path])
    with pytest.raises(ManifestError, match="no manifest can be read"):
        list_images([tmp_path / "none.csv"])
