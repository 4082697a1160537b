"""A detector whose every mood is in a test's hands."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from model.detector import Detection, Detector, Doubt, ModelError, Prepared, Thresholds

POISON = 13  # an image of this grey makes its batch fail
SLOW = 77  # an image of this grey takes SLOW_S
SLOW_S = 1.0
HANG = 99  # an image of this grey is never answered
STUCK = 98  # an image of this grey never leaves its decoder
DOUBTFUL = 55  # an image of this grey needs a second look, which finds SETTLED
SETTLED = 200
SPOILT = 56  # a second look at an image of this grey finds POISON


class FakePending:
    """`Pending`, of a device that is done once the gate is open."""

    def __init__(
        self, gate: threading.Event | None, result: Callable[[], "list[Detection | Doubt]"]
    ) -> None:
        self._gate = gate
        self._result = result

    @property
    def ready(self) -> bool:
        return self._gate is None or self._gate.is_set()

    def result(self) -> "list[Detection | Doubt]":
        if self._gate is not None:
            self._gate.wait(20)
        return self._result()


class FakeDetector:
    """Scores an image by its mean grey / 255.

    Attributes:
        gate: while cleared, nothing is scored: `submit` blocks, or its answer is not ready.
        entered: set once `submit` was entered.
        asynchronous: like a GPU, `submit` returns before the batch is scored.
        most_under_way: batches that it had at once.
        batches: sizes of the batches it was given.
        broken: the device fails for good.
        threads: that torch would use in the last forward.
    """

    name = "fake"
    version = "1.2.3"
    sha256 = "f" * 64
    backbone = "none"
    backbone_sha256 = "0" * 64
    device = torch.device("cpu")
    engine = "fake"
    canvases = "all"
    dtype = "float32"
    thresholds = Thresholds(real_below=0.3, ai_above=0.7)
    min_side = 64

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.asynchronous = False
        self._under_way = self.most_under_way = 0
        self.batches: list[int] = []
        self.broken = False
        self.threads = 0
        self.prepare_s = 0.0
        self.calibration = {"slope": 1.0}
        self.evaluation = {"auc": 0.5}

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        if self.broken:
            raise RuntimeError("device lost")

    def prepare(self, pixels: np.ndarray, *, thorough: bool = False) -> Prepared:
        if self.prepare_s:
            time.sleep(self.prepare_s)
        if round(pixels.mean()) == STUCK:
            threading.Event().wait()
        grey = torch.tensor([[[[float(pixels.mean())]]]])
        return Prepared(grey, ())

    def torch_threads(self, threads: int) -> int:
        return threads

    def submit(self, batch: Sequence[Prepared]) -> "FakePending":
        self.entered.set()
        self.batches.append(len(batch))
        if self.asynchronous:
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
            return FakePending(self.gate, lambda: self._land(batch))
        self.gate.wait(20)
        found = self._score(batch)
        return FakePending(None, lambda: found)

    def _land(self, batch: Sequence[Prepared]) -> list[Detection | Doubt]:
        self._under_way -= 1
        return self._score(batch)

    def _score(self, batch: Sequence[Prepared]) -> list[Detection | Doubt]:
        self.threads = torch.get_num_threads()
        values = [float(item.canvases.mean()) for item in batch]
        if self.broken or any(round(v) == POISON for v in values):
            raise RuntimeError("this text must never reach a client")
        if any(round(v) == HANG for v in values):
            threading.Event().wait()
        if any(round(v) == SLOW for v in values):
            time.sleep(SLOW_S)
        return [self._result(value) for value in values]

    def _result(self, value: float) -> Detection | Doubt:
        second = {DOUBTFUL: SETTLED, SPOILT: POISON}.get(round(value))
        if second is not None:
            return Doubt(lambda: Prepared(torch.full((1, 1, 1, 1), float(second)), ()))
        score = value / 255
        return Detection(score, self.thresholds.verdict(score), (), 0.0)


def load_fake(_: Any) -> Detector:
    """For servers in a process of their own."""
    match os.environ.get("FAKE_LOAD"):
        case "fail":
            raise ModelError("no weights for a test")
        case "hang":
            threading.Event().wait()
    return FakeDetector()  # type: ignore[return-value]
