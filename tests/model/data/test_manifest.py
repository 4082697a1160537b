import os
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.manifest import (
    AI,
    REAL,
    ManifestError,
    Row,
    digest,
    folds,
    images_in,
    read_dataset,
    read_datasets,
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
    rows = read_dataset(path, "train")
    assert rows == [
        Row(tmp_path / "x/1.png", AI, "gan", "a"),
        Row(tmp_path / "x/2.jpg", REAL, "cam", "c"),
    ]
    assert len(read_dataset(path)) == 3


def test_who_published_an_image_and_what_it_shows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "path,label,group,origin_repo,kind\n1.png,ai,gan/2,a/b,photo\n2.png,real,cam/4,,\n"
        "3.png,real,shop,alone,render\n",
    )
    ai, real, alone = read_dataset(path)
    assert (ai.owner, ai.kind) == ("a", "photo")
    assert (real.owner, real.kind) == ("cam/4", "")  # its group, where nobody is named
    assert (alone.owner, alone.kind) == ("alone", "render")


def test_what_people_made_without_a_camera_is_real_and_no_photograph() -> None:
    made = {
        (label, kind)
        for label in (REAL, AI)
        for kind in ("art", "render", "screen", "photo", "")
        if Row(Path("a"), label, "g", "o", kind).made
    }
    assert made == {(REAL, "art"), (REAL, "render"), (REAL, "screen")}


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
        read_dataset(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_said_so(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("path,label,group\na,ai,g\nb,real,caf\u00e9\n".encode(encoding))
    with pytest.raises(ManifestError, match=r"m.csv, line [13]: no UTF-8 text; save it as CSV"):
        read_dataset(path)


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
    assert read_dataset(path) == [
        Row(tmp_path / "a, b.png", AI, "caf\u00e9", "caf\u00e9"),
        Row(tmp_path / "c.png", REAL, "g", "g"),
    ]


def test_a_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        read_dataset(tmp_path / "none.csv")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, split: str | None = None) -> list[tuple[str, int, str]]:
    rows = read_dataset(root, split)
    folder = root if root.is_dir() else root.parent
    return [(row.path.relative_to(folder).as_posix(), row.label, row.group) for row in rows]


def test_a_csv_is_a_dataset_too(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,label,group\na.png,ai,g\nb.png,real,h\n")
    assert listed(path, "train") == [("a.png", AI, "g"), ("b.png", REAL, "h")]


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
    with pytest.raises(ManifestError, match="split 'test', holds no images"):
        read_dataset(tmp_path, "test")


def test_linked_generators_are_followed(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "0_real/1.png", "1_fake/2.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "gan").symlink_to(store)
    assert {row.group for row in read_dataset(root)} == {"gan"}


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    """Each way round would list every image once more, and two such links double them each time."""
    root = tree(tmp_path / "root", "gan/0_real/1.png", "gan/1_fake/2.png", "sd/0_real/1.png")
    (root / "gan" / "up").symlink_to("..")
    (root / "gan" / "self").symlink_to(".")
    (root / "sd" / "other").symlink_to(root / "gan" / "1_fake")  # leads elsewhere
    (root / "gan" / "1_fake" / "sd").symlink_to(root / "sd")
    found = sorted(str(path.relative_to(root)) for path in images_in(root))
    assert found == [
        "gan/0_real/1.png",
        "gan/1_fake/2.png",
        "gan/1_fake/sd/0_real/1.png",
        "sd/0_real/1.png",
        "sd/other/2.png",
    ]


def test_only_files_are_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "1.png")
    os.mkfifo(root / "2.png")
    (root / "3.png").mkdir()
    (root / "4.png").symlink_to("nowhere")  # whoever reads it says so
    assert sorted(path.name for path in images_in(root)) == ["1.png", "4.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "root", "gan/0_real/1.png", "closed/1_fake/2.png")
    scandir = os.scandir

    def listing(path: str) -> Any:  # permissions do not stop root
        if path == str(root / "closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)
    with pytest.raises(ManifestError, match="closed cannot be read: Permission denied"):
        read_dataset(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found no images"),
        (["0_real/1.png", "1_fake/2.png"], r"expected <generator>.* found 0_real/1.png"),
        (["gan/0_real/1.png", "gan/real/2.png"], r"expected <generator>.* found gan/real/2.png"),
        (["gan/0_real/1.png", "stray.png"], "found stray.png"),
        (["gan/1_fake/1.png", "sd/ai/2.png"], "both classes: all 2 are AI images"),
        (["gan/0_real/1.png"], "both classes: all 1 are real"),
    ],
)
def test_a_wrong_layout_says_what_was_expected_and_found(
    names: list[str], message: str, tmp_path: Path
) -> None:
    for split in (None, "train"):
        with pytest.raises(ManifestError, match=message):
            read_dataset(tree(tmp_path, *names), split)


def test_digest_notices_order_label_and_group() -> None:
    rows = [Row(Path("a"), AI, "g", "r"), Row(Path("b"), REAL, "h", "s")]
    assert digest(rows) == digest(list(rows))
    assert digest(rows) != digest(rows[::-1])
    assert digest(rows) != digest([rows[0], Row(Path("b"), REAL, "other", "s")])


def test_several_lists_are_one_whichever_classes_and_splits_each_has(tmp_path: Path) -> None:
    head = "path,label,group,split\n"
    cameras = write(tmp_path / "cameras.csv", head + "1.jpg,real,cam,train\n2.jpg,real,cam,val\n")
    generated = write(tmp_path / "generated.csv", head + "3.png,ai,gan,train\n")
    folder = tree(tmp_path / "bench", "sd/1_fake/4.png", "sd/val/1_fake/5.png")
    several = [cameras, generated, folder]

    def names(split: str | None) -> list[str]:
        return [row.path.name for row in read_datasets(several, split)]

    assert names("train") == ["1.jpg", "3.png", "4.png"]
    assert names("val") == ["2.jpg", "4.png", "5.png"]  # `generated` has none
    assert names(None) == ["1.jpg", "2.jpg", "3.png", "4.png", "5.png"]
    with pytest.raises(ManifestError, match="both classes: all 1 are AI images"):
        read_datasets([generated], "train")
    with pytest.raises(ManifestError, match=r"cameras.csv and .*: all 2 are real"):
        read_datasets([cameras, cameras])
    with pytest.raises(ManifestError, match=r"generated.csv, split 'tset', holds no images"):
        read_datasets([cameras, generated], "tset")
    with pytest.raises(ManifestError, match="no manifest can be read"):
        read_datasets([*several, tmp_path / "none.csv"], "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="found no images"):
        read_datasets([*several, tmp_path / "empty"], "train")


def test_a_file_that_is_listed_twice_is_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is reached: what is known of it is told once, and it counts once."""
    head = "path,label,group\n"
    (tmp_path / "sub").mkdir()
    near = write(tmp_path / "sub/m.csv", head + "a.png,ai,g\nb.png,real,h\nb.png,real,h\n")
    far = write(tmp_path / "m.csv", head + "sub/a.png,ai,g\nsub/../c.png,ai,g\nc.png,ai,g\n")
    monkeypatch.chdir(tmp_path)
    for paths in ([near, far], [near, Path("sub/m.csv"), Path("m.csv")]):
        rows = read_datasets(paths)
        assert [row.path.name for row in rows] == ["a.png", "b.png", "c.png"]
    assert len(read_datasets([near])) == 2


def publishers(*counts: tuple[int, int]) -> list[Row]:
    """Of each owner so many real and AI images, in groups of their own."""
    return [
        Row(Path(f"{owner}-{label}-{i}"), label, f"{label}-{owner}-{i % 3}", f"owner{owner}")
        for owner, of in enumerate(counts)
        for label in (REAL, AI)
        for i in range(of[label])
    ]


def loads(rows: list[Row], assigned: list[int], count: int) -> dict[int, list[int]]:
    """Images of each class in each fold."""
    pairs = Counter((row.label, fold) for row, fold in zip(rows, assigned, strict=True))
    return {label: [pairs[label, fold] for fold in range(count)] for label in (REAL, AI)}


def test_folds_balance_both_classes_at_once() -> None:
    rows = publishers(*[(9, 3)] * 4, *[(6, 0)] * 8, *[(0, 5)] * 12)
    assert loads(rows, folds(rows, 4), 4) == {REAL: [21] * 4, AI: [18] * 4}
    # One that brings more of one class than a fold has room for gets nothing else of it.
    rows = publishers((40, 1), *[(5, 0)] * 8, *[(0, 5)] * 8)
    spread = loads(rows, folds(rows, 3), 3)
    assert spread[REAL] == [40, 20, 20]
    assert max(spread[AI]) - min(spread[AI]) <= 5


OWNERS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=20)


@given(OWNERS, st.integers(2, 6), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_folds_keep_owners_whole_whatever_order_they_are_listed_in(
    counts: list[tuple[int, int]], count: int, random: Random
) -> None:
    rows = publishers(*counts)
    assigned = folds(rows, count)
    assert all(0 <= fold < count for fold in assigned)
    pairs = {(row.owner, fold) for row, fold in zip(rows, assigned, strict=True)}
    assert len(pairs) == len({row.owner for row in rows})
    shuffled = random.sample(rows, len(rows))
    place = dict(zip(rows, assigned, strict=True))
    assert folds(shuffled, count) == [place[row] for row in shuffled]


@given(st.lists(st.integers(1, 12), max_size=20), st.lists(st.integers(1, 12), max_size=20))
@settings(deadline=None)
def test_no_fold_has_more_than_one_owner_too_many(real: list[int], ai: list[int]) -> None:
    rows = publishers(*[(size, 0) for size in real], *[(0, size) for size in ai])
    spread = loads(rows, folds(rows, 3), 3)
    for label, sizes in ((REAL, real), (AI, ai)):
        assert max(spread[label]) - min(spread[label]) <= max(sizes, default=0)
