"""What only a GPU can show; skipped where there is none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.hardware import Runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def images() -> list[np.ndarray]:
    """Of many sizes, smaller and larger than a canvas, more than the largest batch at once."""
    rng = np.random.default_rng(0)
    sides = rng.integers(32, 300, (70, 2))
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sides]


def load(checkpoint: Path, tower: Path, device: str, dtype: str = "float32") -> Detector:
    runtime = Runtime.resolve(device, dtype, "torch")
    return Detector.load(checkpoint, backbone=tower, runtime=runtime, canvases="all")


def test_a_gpu_scores_as_a_cpu_does(
    checkpoint: Path, tiny_tower: Path, images: list[np.ndarray]
) -> None:
    expected = [answer.score for answer in load(checkpoint, tiny_tower, "cpu").detect(images)]
    gpu = load(checkpoint, tiny_tower, "cuda")
    for count in (1, 3, 70):
        scores = [answer.score for answer in gpu.detect(images[:count])]
        # A whole image is resized in floating point there, in fixed point on a CPU.
        assert scores == pytest.approx(expected[:count], abs=5e-3)
    half = load(checkpoint, tiny_tower, "cuda", "auto")
    assert half.about.dtype == "bfloat16"
    scores = [answer.score for answer in half.detect(images)]
    assert scores == pytest.approx(expected, abs=0.05)


def test_images_are_prepared_in_threads_while_others_are_scored(
    checkpoint: Path, tiny_tower: Path, images: list[np.ndarray]
) -> None:
    detector = load(checkpoint, tiny_tower, "cuda")
    alone = [detector.detect([image])[0].score for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            looks = pool.map(detector.look, images)
            pending = [detector.submit([look]) for look in looks]
            scores = [score.value for of in pending for score in of.result()]
            assert scores == pytest.approx(alone, abs=1e-4)
            assert all(of.ready for of in pending)
