"""The path of a real user: the real process, the real tower, the default checkpoint."""

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import skimage
from PIL import Image

from model.checkpoint import read_checkpoint
from model.detector import DEFAULT_CHECKPOINT, Detector
from model.hardware import Runtime
from model.tower.sources import fetch
from tests.server.conftest import Process

# Freely licensed photographs that scikit-image ships.
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")

pytestmark = [pytest.mark.backbone, pytest.mark.process, pytest.mark.slow]


def test_real_photographs_are_not_accused(process: Callable[..., Process]) -> None:
    fetch()
    folder = Path(skimage.__file__).parent / "data"
    url = process(fake=False).ready()
    metadata = read_checkpoint(DEFAULT_CHECKPOINT).metadata
    with httpx.Client(base_url=url, timeout=60) as client:
        for name in PHOTOS:
            answer = client.post("/detect", files={"file": (folder / name).read_bytes()})
            assert answer.status_code == 200
            body = answer.json()
            assert body["verdict"] in ("real", "uncertain"), name
            assert body["model"]["name"] == metadata.name == "nsnet-vit-b-16"
            assert body["thresholds"]["ai_above"] == metadata.verdicts.thresholds.ai_above
        model = client.get("/model").json()
    assert model["evaluation"] == metadata.evaluation
    assert model["backbone"]["sha256"] == metadata.backbone_sha256


def test_http_and_the_detector_agree(process: Callable[..., Process]) -> None:
    fetch()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 700, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    url = process(fake=False, NSNET_DTYPE="float32").ready()
    answer = httpx.post(f"{url}/detect", files={"file": buffer.getvalue()}, timeout=60)
    detector = Detector.load(runtime=Runtime.resolve(dtype="float32"))
    assert answer.json()["score"] == pytest.approx(detector.detect([pixels])[0].score, abs=1e-4)
    assert (
        detector.about.backbone_sha256
        == read_checkpoint(DEFAULT_CHECKPOINT).metadata.backbone_sha256
    )
