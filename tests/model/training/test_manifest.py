from collections import defaultdict
from pathlib import Path

import pytest

from model.training.manifest import (
    AI,
    REAL,
    ManifestError,
    Row,
    digest,
    folds,
    read_dataset,
    read_manifest,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rows_of_a_split_with_paths_beside_the_manifest(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "split,label,group,origin_repo,path\n"
        "train,ai,gan,a/b,x/1.png\ntrain,real,cam,c/d,x/2.jpg\nval,ai,gan,a/b,x/3.png\n",
    )
    rows = read_manifest(path, "train")
    assert rows == [
        Row(tmp_path / "x/1.png", AI, "gan", "a/b"),
        Row(tmp_path / "x/2.jpg", REAL, "cam", "c/d"),
    ]
    assert len(read_manifest(path)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns"),
        ("path,label\na,ai\n", "needs the columns"),
        ("path,label,group\na,fake,g\n", "'fake' is neither"),
        ("path,label,group\na,ai,g\nb,ai,h\n", "both classes"),
    ],
)
def test_an_unusable_manifest_is_a_clear_error(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(tmp_path / "m.csv", text))


def test_a_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        read_manifest(tmp_path / "none.csv")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, split: str | None = None) -> list[tuple[str, int, str]]:
    rows = read_dataset(root, split)
    return [(row.path.relative_to(root).as_posix(), row.label, row.group) for row in rows]


def test_a_csv_is_a_dataset_too(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,label,group\na.png,ai,g\nb.png,real,h\n")
    assert read_dataset(path, "train") == read_manifest(path, "train")


def test_generators_with_and_without_classes_in_order(tmp_path: Path) -> None:
    tree(
        tmp_path, "progan/horse/0_real/b.PNG", "progan/cat/1_fake/a.jpg", "sd/1_fake/c.webp",
        "sd/0_real/d.jpeg", "progan/animal/dog/0_real/e.png",
        "sd/0_real/.d.jpeg", ".cache/x.png", "sd/0_real/notes.txt", "README.md",
    )  # fmt: skip
    assert found(tmp_path, "train") == [
        ("progan/animal/dog/0_real/e.png", REAL, "progan"),
        ("progan/cat/1_fake/a.jpg", AI, "progan"),
        ("progan/horse/0_real/b.PNG", REAL, "progan"),
        ("sd/0_real/d.jpeg", REAL, "sd"),
        ("sd/1_fake/c.webp", AI, "sd"),
    ]


def test_splits_of_genimage_wherever_their_level_stands(tmp_path: Path) -> None:
    tree(
        tmp_path, "adm/imagenet_adm/train/ai/1.png", "adm/imagenet_adm/train/nature/2.png",
        "adm/imagenet_adm/val/ai/3.png", "val/glide/nature/4.png",
    )  # fmt: skip
    assert [name[-5] for name, _, _ in found(tmp_path, "train")] == ["1", "2"]
    assert found(tmp_path, "val")[1] == ("val/glide/nature/4.png", REAL, "glide")
    assert len(found(tmp_path)) == 4
    with pytest.raises(ManifestError, match="no images of split 'test'"):
        read_dataset(tmp_path, "test")


def test_linked_generators_are_followed(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "0_real/1.png", "1_fake/2.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "gan").symlink_to(store)
    assert {row.group for row in read_dataset(root)} == {"gan"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found no images"),
        (["0_real/1.png", "1_fake/2.png"], r"expected <generator>.* found 0_real/1.png"),
        (["gan/0_real/1.png", "gan/real/2.png"], r"expected <generator>.* found gan/real/2.png"),
        (["gan/0_real/1.png", "stray.png"], "found stray.png"),
        (["gan/1_fake/1.png", "sd/ai/2.png"], "both classes: all 2 are AI images"),
        (["gan/0_real/1.png"], "both classes: all 1 are photographs"),
    ],
)
def test_a_wrong_layout_says_what_was_expected_and_found(
    names: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=message):
        read_dataset(tree(tmp_path, *names))


def test_digest_notices_order_label_and_group() -> None:
    rows = [Row(Path("a"), AI, "g", "r"), Row(Path("b"), REAL, "h", "s")]
    assert digest(rows) == digest(list(rows))
    assert digest(rows) != digest(rows[::-1])
    assert digest(rows) != digest([rows[0], Row(Path("b"), REAL, "other", "s")])


def test_folds_keep_groups_whole_and_classes_balanced() -> None:
    rows = [Row(Path(f"ai{g}-{i}"), AI, f"gan{g}", "one-repository")
            for g in range(20) for i in range(5)]  # fmt: skip
    rows += [Row(Path(f"r{g}-{i}"), REAL, f"cam{g}", f"site{g // 2}")
             for g in range(12) for i in range(9)]  # fmt: skip
    assigned = folds(rows, 4)
    assert assigned == folds(rows, 4)
    seen = defaultdict(set)
    for row, fold in zip(rows, assigned, strict=True):
        seen[row.group if row.label == AI else row.repository].add(fold)
    assert all(len(where) == 1 for where in seen.values())
    assert {row.unit for row in rows if row.label == AI} == {f"gan{g}" for g in range(20)}
    assert {row.unit for row in rows if row.label == REAL} == {f"site{g}" for g in range(6)}
    for fold in range(4):
        labels = [row.label for row, f in zip(rows, assigned, strict=True) if f == fold]
        assert labels.count(AI) == 25
        assert labels.count(REAL) > 0
