"""BLIP's real code path on a tiny random model saved to a folder: no download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import ModelError
from model.nullspace import read_text_features
from model.training.captions import Captioner, Pixels, write_captions
from tests.images import jpeg

pytest.importorskip("transformers", reason="needs the [train] extra")

WORDS = ("a", "cat", "dog", "photo", "of", "red", "blue", "sky")


def save_tiny_blip(folder: Path) -> Path:
    """An untrained BLIP of a few thousand weights, in transformers' layout."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    text = {
        "vocab_size": len(vocabulary),
        "encoder_hidden_size": 16,
        "bos_token_id": 5,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "max_position_embeddings": 32,
    }
    vision = {"image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=size | text, vision_config=size | vision)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():  # BLIP's initial weights are so small that all images look alike
        for weight in (w for w in model.parameters() if w.ndim > 1):
            weight.normal_(std=0.3)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    processor: Any = BlipProcessor
    processor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Five; image i is 40 + i pixels wide."""
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(40 + i, 50))
    return paths


def widths(images: Sequence[Pixels]) -> list[str]:
    return [f"{image.shape[1]} wide" for image in images]


def test_blip_captions_each_image_the_same_in_any_batch(blip: Path) -> None:
    rng = np.random.default_rng(0)
    images = [np.full((40, 60, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(6)]
    captioner = Captioner.load(str(blip))
    captions = captioner(images)
    assert len(set(captions)) > 3
    assert {word for caption in captions for word in caption.split()} <= set(WORDS) | {"[UNK]"}
    assert [captioner([image])[0] for image in images] == captions


def test_line_i_is_the_caption_of_image_i(photographs: list[Path], tmp_path: Path) -> None:
    photographs[1].write_bytes(b"not an image")
    photographs[3].unlink()
    to = tmp_path / "new" / "captions.txt"
    assert write_captions(photographs, widths, to, batch_size=2) == 2
    assert to.read_text() == "40 wide\n\n42 wide\n\n44 wide\n"
    V = read_text_features(to, lambda lines: torch.ones(len(lines), 3))
    assert V.shape == (3, 3)  # the empty lines are nobody's captions


def test_an_interrupted_run_goes_on_where_it_stopped(
    photographs: list[Path], tmp_path: Path
) -> None:
    to = tmp_path / "captions.txt"
    seen: list[str] = []

    def fails_after_two(images: Sequence[Pixels]) -> list[str]:
        if seen:
            raise KeyboardInterrupt
        seen.extend(widths(images))
        return list(seen)

    with pytest.raises(KeyboardInterrupt):
        write_captions(photographs, fails_after_two, to, batch_size=2)
    with to.open("a") as file:
        file.write("42 wi")  # cut off in the middle of a line
    to_come: list[str] = []

    def records(images: Sequence[Pixels]) -> list[str]:
        to_come.extend(widths(images))
        return widths(images)

    assert write_captions(photographs, records, to, batch_size=2) == 0
    assert to_come == ["42 wide", "43 wide", "44 wide"]
    assert to.read_text().splitlines() == [f"{40 + i} wide" for i in range(5)]


def test_nothing_captioned_or_other_data_is_refused(
    photographs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="none of the 1 images"):
        write_captions([tmp_path / "missing.png"], widths, tmp_path / "a.txt")
    write_captions(photographs, widths, tmp_path / "b.txt")
    with pytest.raises(ModelError, match="5 captions for 2 images"):
        write_captions(photographs[:2], widths, tmp_path / "b.txt")
    with pytest.raises(ModelError, match="cannot be written"):
        write_captions(photographs, widths, tmp_path)


def test_a_silent_hub_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: object, **options: object) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "head", silent)
    with pytest.raises(ModelError, match=r"no-one/no-blip.*local folder.*`nsnet projector`"):
        Captioner.load("no-one/no-blip")


def test_a_folder_without_a_whole_blip_is_refused(blip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no BLIP captioner"):
        Captioner.load(str(tmp_path))
    for file in blip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if name.startswith("text_decoder.bert.encoder"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=lost):
        Captioner.load(str(tmp_path))


def test_a_device_that_is_not_there_is_refused(blip: Path) -> None:
    with pytest.raises(ModelError, match="device"):
        Captioner.load(str(blip), device="nonsense")
