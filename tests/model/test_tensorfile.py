from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import tensorfile
from model.errors import ModelError
from model.tensorfile import parse_tensors, write_tensors


class About(BaseModel):
    text: str


ABOUT = About(text='"file_sha256":"' + "0" * 64 + '"')  # what a digest's place looks like
TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int16)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "file.safetensors"
    write_tensors(path, TENSORS, "about", ABOUT)
    return path


def read(path: Path, data: bytes | None = None) -> tuple[dict[str, torch.Tensor], About]:
    data = data or path.read_bytes()
    return parse_tensors(data, path, "about", About, "a file of this test")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_what_is_written_comes_back_and_is_a_safetensors_file(path: Path) -> None:
    tensors, about = read(path)
    assert about == ABOUT
    for held in (tensors, load_file(path)):
        assert held.keys() == TENSORS.keys()
        assert all(torch.equal(held[name], TENSORS[name]) for name in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata()["about"] == ABOUT.model_dump_json()
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_same_is_written_to_the_bit(path: Path) -> None:
    """A checkpoint is told by the digest of its file."""
    first = path.read_bytes()
    for _ in range(5):
        write_tensors(path, TENSORS, "about", ABOUT)
        assert path.read_bytes() == first


def test_any_flipped_bit_is_an_error(path: Path) -> None:
    data = path.read_bytes()
    unnoticed = []
    for byte in range(len(data)):
        bit = 8 * byte + byte % 8
        try:
            unnoticed.append((bit, *read(path, flipped(data, bit))))
        except ModelError:
            continue
    # Only in the name of the digest's place: then there is none, and all else is as it was.
    place = data.rindex(b"file_sha256")
    for bit, tensors, about in unnoticed:
        assert place <= bit // 8 < place + len("file_sha256")
        assert about == ABOUT
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_damage_is_told_as_such(path: Path) -> None:
    data = path.read_bytes()
    with pytest.raises(ModelError, match=r"^\S+file\.safetensors is damaged: [^\n]+$"):
        read(path, flipped(data, 8 * len(data) - 5))


def test_a_file_without_a_digest_is_taken_as_it_is(path: Path) -> None:
    save_file(TENSORS, path, metadata={"about": ABOUT.model_dump_json()})
    assert read(path)[1] == ABOUT


class Anything(BaseModel):
    pass


WEIGHTS = Path(tensorfile.__file__).parent.parent / "weights"


@pytest.mark.parametrize("name", sorted(path.name for path in WEIGHTS.glob("*.safetensors")))
def test_the_packages_own_files_are_held_against_digests_of_theirs(
    name: str, tmp_path: Path
) -> None:
    """Wherever a copy lies: one that was mounted scored with a bit flipped."""
    data = (WEIGHTS / name).read_bytes()
    key = "nsnet-projector" if name.startswith("projector") else "nsnet"
    parse_tensors(data, tmp_path / "mine", key, Anything, "one of ours")
    size = 8 * len(data)
    for bit in (size - 1, size - 77, size // 2, size // 3):
        with pytest.raises(ModelError, match="is damaged"):
            parse_tensors(flipped(data, bit), tmp_path / "mine", key, Anything, "one of ours")
