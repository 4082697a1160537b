from collections import defaultdict
from pathlib import Path

import pytest

from model.training.manifest import AI, REAL, ManifestError, Row, digest, folds, read_manifest


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
    for fold in range(4):
        labels = [row.label for row, f in zip(rows, assigned, strict=True) if f == fold]
        assert labels.count(AI) == 25
        assert labels.count(REAL) > 0
