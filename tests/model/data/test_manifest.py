from collections import defaultdict
from pathlib import Path

import pytest

from model.data.manifest import (
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
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_a_split_with_paths_beside_the_manifest(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "split,label,group,origin_repo,path\n"
        "train,ai,gan,a/b,x/1.png\ntrain,real,cam,c/d,x/2.jpg\nval,ai,gan,a/b,x/3.png\n",
    )
    rows = read_manifest(path, "train")
    assert rows == [
        Row(tmp_path / "x/1.png", AI, "gan", "a/b", "a"),
        Row(tmp_path / "x/2.jpg", REAL, "cam", "c/d", "c"),
    ]
    assert len(read_manifest(path)) == 3


def test_who_published_an_image_and_what_it_shows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "path,label,group,origin_repo,kind\n1.png,ai,gan/2,a/b,photo\n2.png,real,cam/4,,\n",
    )
    ai, real = read_manifest(path)
    assert (ai.repository, ai.owner, ai.kind) == ("a/b", "a", "photo")
    assert (real.repository, real.owner, real.kind) == ("cam/4", "cam/4", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns"),
        ("path,label\na,ai\n", "needs the columns"),
        (f"path,label,group,{'x' * 200_000}\n", "needs the columns .* field larger"),
        (f'{{"rows": "{"z" * 200_000}"}}', "needs the columns .* field larger"),
        ('"path,label,group\na,ai,g\n', "needs the columns .* unexpected end"),
        *[
            (f"path,label,group{end},extra\na,real,g,1\nb,ai,h,2\n", "needs the columns")
            for end in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
        ],
        ("path,label,group\na,ai,g\nb,ai,h\n", "both classes"),
        ("path,label,group\na,ai,g\nb,fake,g\n", "line 3: label 'fake' is neither"),
        ("path,label,group\na,ai,g\n\nb,real\n", "line 4: 2 fields, where the header has 3"),
        ("path,label,group\na,ai,g,h\n", "line 2: 4 fields, where the header has 3"),
        ("path,label,group,label\na,ai,g,ai\n", "line 1: two columns 'label'"),
        (f"path,label,group\na,ai,{'g' * 200_000}\n", "line 2: field larger than field limit"),
        ('path,label,group\na,ai,g\nb,real,"h\nc,ai,g\n', "line 3: unexpected end of data"),
        ('path,label,group\na,ai,"g" h\n', "line 2: .*expected after"),
        ("path,label,group\na,ai,g\nb,re\0al,h\n", "line 3: no UTF-8 text"),
    ],
)
def test_an_unusable_manifest_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", text)
    with pytest.raises(ManifestError, match=message) as refused:
        read_manifest(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_said_so(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("path,label,group\na,ai,g\nb,real,caf\u00e9\n".encode(encoding))
    with pytest.raises(ManifestError, match=r"m.csv, line [13]: no UTF-8 text; save it as CSV"):
        read_manifest(path)


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(
    separator: str, mark: str, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.csv"
    lines = ["path,label,group", '"a, b.png",ai,caf\u00e9', "c.png,real,g", ""]
    if separator == ";":
        lines = [line.replace(",", ";").replace("; ", ", ") for line in lines]
    path.write_bytes((mark + end.join(lines)).encode())
    assert read_manifest(path) == [
        Row(tmp_path / "a, b.png", AI, "caf\u00e9", "caf\u00e9", "caf\u00e9"),
        Row(tmp_path / "c.png", REAL, "g", "g", "g"),
    ]


def test_a_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        read_manifest(tmp_path / "none.csv")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, split: str | None = None) -> list[tuple[str, int, str]]:
    rows = read_dataset(root, split)
    return [(row.path.relative_to(root).as_posix(), row.label, row.group) for row in rows]


def test_a_csv_is_a_dataset_too(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,label,group\na.png,ai,g\nb.png,real,h\n")
    assert read_dataset(path, "train") == read_manifest(path, "train")


def test_generators_with_and_without_classes_in_order(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "progan/horse/0_real/b.PNG",
        "progan/cat/1_fake/a.jpg",
        "sd/1_fake/c.webp",
        "sd/0_real/d.jpeg",
        "progan/animal/dog/0_real/e.png",
        "sd/0_real/.d.jpeg",
        ".cache/x.png",
        "sd/0_real/notes.txt",
        "README.md",
    )
    assert listed(tmp_path, "train") == [
        ("progan/animal/dog/0_real/e.png", REAL, "progan"),
        ("progan/cat/1_fake/a.jpg", AI, "progan"),
        ("progan/horse/0_real/b.PNG", REAL, "progan"),
        ("sd/0_real/d.jpeg", REAL, "sd"),
        ("sd/1_fake/c.webp", AI, "sd"),
    ]


def test_what_the_service_reads_is_an_image_and_nothing_else(tmp_path: Path) -> None:
    tree(
        tmp_path,
        *("gan/0_real/a.heic", "gan/0_real/b.AVIF", "gan/0_real/c.jpeg", "gan/1_fake/d.tif"),
        *("gan/0_real/e.ppm", "gan/1_fake/f.psd", "gan/1_fake/g"),
    )
    assert [name[-6:] for name, _, _ in listed(tmp_path)] == [
        "a.heic",
        "b.AVIF",
        "c.jpeg",
        "/d.tif",
    ]


def test_splits_of_genimage_wherever_their_level_stands(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "adm/imagenet_adm/train/ai/1.png",
        "adm/imagenet_adm/train/nature/2.png",
        "adm/imagenet_adm/val/ai/3.png",
        "val/glide/nature/4.png",
    )
    assert [name[-5] for name, _, _ in listed(tmp_path, "train")] == ["1", "2"]
    assert listed(tmp_path, "val")[1] == ("val/glide/nature/4.png", REAL, "glide")
    assert len(listed(tmp_path)) == 4
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
    rows = [
        Row(Path(f"ai{g}-{i}"), AI, f"gan{g}", "one-repository")
        for g in range(20)
        for i in range(5)
    ]
    rows += [
        Row(Path(f"r{g}-{i}"), REAL, f"cam{g}", f"site{g // 2}")
        for g in range(12)
        for i in range(9)
    ]
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
