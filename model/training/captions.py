"""Captions of the training images by BLIP, from which V is computed (paper, section 3.3)."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from model.errors import ImageError, ModelError
from model.hardware import Runtime
from model.images import read_picture
from model.tower.sources import hub_answers

log = logging.getLogger(__name__)

DEFAULT_CAPTIONER = "Salesforce/blip-image-captioning-base"

_MAX_TOKENS = 20  # as in BLIP's own captioning

Pixels = NDArray[np.uint8]  # [H, W, 3], sRGB


class Captioner:
    """BLIP, decoded greedily: the same images give the same captions.

    Args:
        model: transformers' `BlipForConditionalGeneration`.
        processor: its `BlipProcessor`.
        device: where it runs.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._processor = processor
        self._device = device

    @classmethod
    def load(cls, source: str = DEFAULT_CAPTIONER, *, device: str = "cpu") -> Self:
        """Load BLIP from a local folder, the hub's cache or the hub, in this order.

        Args:
            source: a folder in transformers' layout, or the hub's name of one.
            device: where it runs.

        Raises:
            ModelError: it cannot be had, or is no BLIP with a caption decoder; the message names
                the ways out.
        """
        where = Runtime.resolve(device, "float32").device
        try:
            return cls(*_load(source, local=True), where)
        except (OSError, ValueError) as error:
            if Path(source).exists():
                raise ModelError(f"{source} holds no BLIP captioner: {_first(error)}") from error
        _ask_hub(source)
        try:
            return cls(*_load(source, local=False), where)
        except (OSError, ValueError) as error:
            raise ModelError(f"the hub's {source} cannot be used: {_first(error)}") from error

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> list[str]:
        """One caption, a single line, per image: uint8 [H, W, 3] each."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._device)
        tokens = self._model.generate(
            **inputs, max_new_tokens=_MAX_TOKENS, do_sample=False, num_beams=1
        )
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _load(source: str, *, local: bool) -> tuple[Any, Any]:
    from transformers import BlipForConditionalGeneration, BlipProcessor  # seconds to import

    processor = BlipProcessor.from_pretrained(source, local_files_only=local)
    loaded: Any = BlipForConditionalGeneration.from_pretrained(
        source, local_files_only=local, output_loading_info=True
    )
    model, report = loaded
    # transformers would only warn, and caption with random weights.
    if missing := report["missing_keys"]:
        raise ValueError(f"its weights lack {min(missing)}")
    return model, processor


def _ask_hub(source: str) -> None:
    """Fail within seconds where there is no hub."""
    if not hub_answers():
        raise ModelError(
            f"{source} is neither a local folder nor in the hub's cache, and the hub does not "
            "answer: name a folder that holds BLIP (`--model FOLDER`), or give `nsnet projector` "
            "any other file of captions, one a line"
        )


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def write_captions(
    paths: Sequence[Path],
    caption: Callable[[Sequence[Pixels]], list[str]],
    to: Path,
    *,
    batch_size: int = 16,
) -> int:
    """Caption images into a text file whose line i belongs to image i.

    The line of an image that cannot be read is empty, and `nullspace.read_text_features` passes
    it over. Lines that are there already are kept: an interrupted run goes on where it stopped.

    Args:
        paths: the images.
        caption: one line for each image, e.g. a `Captioner`.
        to: the text file.
        batch_size: images per call of `caption`.

    Returns:
        How many images have no caption.

    Raises:
        ModelError: the file cannot be written, has more lines than there are images, or no image
            could be captioned.
    """
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        done = _whole_lines(to)
        if done > len(paths):
            raise ModelError(
                f"{to} has {done} captions for {len(paths)} images: it is of other data"
            )
        with to.open("a", encoding="utf-8") as file, ThreadPoolExecutor() as pool:
            for start in track(range(done, len(paths), batch_size), description="captions"):
                images = list(pool.map(_read, paths[start : start + batch_size]))
                readable = [image for image in images if image is not None]
                texts = iter(caption(readable) if readable else [])
                file.writelines(f"{'' if i is None else next(texts)}\n" for i in images)
                file.flush()
        lines = to.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"captions cannot be written to {to}") from error
    empty = sum(not line for line in lines)
    if empty == len(paths):
        raise ModelError(f"none of the {len(paths)} images could be captioned")
    return empty


def _whole_lines(path: Path) -> int:
    """Lines already written; one cut off in the middle is removed."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    return whole.count(b"\n")


def _read(path: Path) -> Pixels | None:
    try:
        return read_picture(path).pixels
    except ImageError as error:
        log.info("skipped %s: %s", path, error)
        return None
