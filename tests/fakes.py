"""A detector whose every mood is in a test's hands."""

import atexit
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from app.decoding.pool import Decoders
from app.scoring import ServedDetector
from app.settings import Settings
from model.detector import About, Evidence, Judged, Look, ModelError, Score
from model.verdicts import (
    Accused,
    Calibration,
    Calibrations,
    Cut,
    Margins,
    Quality,
    QualityRule,
    Reason,
    Thresholds,
    VerdictRules,
)
from model.views.patches import PatchRule
from model.views.plan import Grounds
from model.views.view import View
from model.views.windows import cut_windows

POISON = 13  # an image of this grey makes its batch fail
SLOW = 77  # an image of this grey takes SLOW_S
SLOW_S = 1.0
HANG = 99  # an image of this grey is never answered
STUCK = 98  # an image of this grey never leaves its decoder
DOUBTFUL = 55  # an image of this grey needs a second look, which finds SETTLED
SETTLED = 200
SPOILT = 56  # a second look at an image of this grey finds POISON
GLANCED = 60  # of an image of this grey, one look of several is enough
BLURRED = 210  # an image of this grey is of low quality


_CALIBRATION = Calibration(slope=1.0, intercept=0.0, fitted_on="nothing")


class FakePending:
    """`Pending`, of a device that is done once the gate is open."""

    def __init__(self, gate: threading.Event | None, result: Callable[[], Sequence[Score]]) -> None:
        self._gate = gate
        self._result = result

    @property
    def ready(self) -> bool:
        return self._gate is None or self._gate.is_set()

    def result(self) -> Sequence[Score]:
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
        before_look: called with an image's grey before its first look is cut.
        before_more: called before a second look is cut.
    """

    about = About(
        name="fake",
        version="1.2.3",
        sha256="f" * 64,
        backbone="none",
        backbone_sha256="0" * 64,
        tower_sha256="0" * 64,
        device="cpu",
        engine="fake",
        precision="float",
        dtype="float32",
        canvases="adaptive",
        rules=VerdictRules(
            calibrations=Calibrations(first=_CALIBRATION, all=_CALIBRATION),
            thresholds=Thresholds(real_below=0.3, ai_above=0.7),
            margins=Margins(clearing=1.0, accusing=1.0),
            quality=QualityRule(min_side=160, min_sharpness=0.4, max_blockiness=1.5),
        ),
        min_side=64,
        explained=16,
        calibration={"first": {"slope": 1.0}, "all": {"slope": 1.0}, "window": None},
        cuts=[
            Cut(
                cut=0.7,
                conditions={
                    "clean": Accused(photographs_accused=0.01, made_accused=None, ai_found=0.8)
                },
            )
        ],
        evaluation={"auc": 0.5},
    )

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.asynchronous = False
        self._under_way = self.most_under_way = 0
        self.batches: list[int] = []
        self.broken = False
        self.threads = 0
        self.before_look: Callable[[int], object] = lambda grey: None
        self.before_more: Callable[[], object] = lambda: None

    def warm_up(self, images: Sequence[int]) -> None:
        if self.broken:
            raise RuntimeError("device lost")

    def look(self, pixels: NDArray[np.uint8], *, explain: bool = False) -> Look:
        grey = float(pixels.mean())
        self.before_look(round(grey))
        if round(grey) == STUCK:
            threading.Event().wait()
        look = look_of(grey)
        return dataclasses.replace(look, grounds=grounds_of(pixels)) if explain else look

    def torch_threads(self, threads: int) -> int:
        return threads

    def submit(self, looks: Sequence[Look]) -> FakePending:
        self.entered.set()
        self.batches.append(len(looks))
        if self.asynchronous:
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
            return FakePending(self.gate, lambda: self._land(looks))
        self.gate.wait(20)
        scores = self._score(looks)
        return FakePending(None, lambda: scores)

    def _land(self, looks: Sequence[Look]) -> list[Score]:
        self._under_way -= 1
        return self._score(looks)

    def _score(self, looks: Sequence[Look]) -> list[Score]:
        self.threads = torch.get_num_threads()
        greys = [round(float(look.canvases.mean())) for look in looks]
        if self.broken or POISON in greys:
            raise RuntimeError("this text must never reach a client")
        if HANG in greys:
            threading.Event().wait()
        if SLOW in greys:
            time.sleep(SLOW_S)
        return [self._one(look) for look in looks]

    def _one(self, look: Look) -> Score:
        grey = float(look.canvases.mean())
        looks = len(look.seen) + 1
        second = {DOUBTFUL: SETTLED, SPOILT: POISON}.get(round(grey))
        if second is not None:
            more = functools.partial(self._more, second, look.grounds)
            return Score(grey / 255, grey, looks, glance=True, more=more)
        reasons = (Reason.LOW_QUALITY,) if round(grey) == BLURRED else ()
        return Score(
            grey / 255,
            grey,
            looks,
            reasons,
            warnings=tuple(reason.value for reason in reasons),
            glance=round(grey) == GLANCED,
            evidence=None if look.grounds is None else evidence_from(look.grounds, grey),
        )

    def _more(self, grey: int, grounds: Grounds | None) -> Look:
        self.before_more()
        return dataclasses.replace(look_of(grey, seen=(0.0,)), grounds=grounds)


def look_of(grey: float, seen: tuple[float, ...] = ()) -> Look:
    """All that is left of an image of one grey."""
    return Look(torch.full((1, 1, 1, 1), float(grey)), Quality(300, 2.0, 1.0), seen=seen)


def grounds_of(pixels: NDArray[np.uint8]) -> Grounds:
    """A grid of windows; those of an image that is one grey say so."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0)
    height, width = pixels.shape[:2]
    whole = View((0, 0, width, height), None)
    return Grounds((whole,), cut_windows(image, PatchRule(), FakeDetector.about.explained - 1))


def evidence_from(grounds: Grounds, grey: float) -> Evidence:
    """Of the whole image its grey as log-odds over 100, of each window its own."""
    calibration = Calibration(slope=0.01, intercept=0.0, fitted_on="nothing")
    windows = tuple(
        Judged(view, float(canvas.float().mean()), calibration, "window")
        for view, canvas in zip(grounds.windows.views, grounds.windows.canvases, strict=True)
    )
    views = tuple(Judged(view, grey, calibration, "first") for view in grounds.views)
    return Evidence(views, "the view's logit, `first`", windows, mapped=True)


@functools.cache
def shared_decoders() -> Decoders:
    """Of all servers in this process that are not about decoders: they take a while to start."""
    decoders = Decoders(2, cpu_s=5, wall_s=30, replaced=lambda _: None)
    decoders.start()
    atexit.register(decoders.stop)
    return decoders


def load_fake(_: Settings) -> ServedDetector:
    """For servers in a process of their own."""
    match os.environ.get("FAKE_LOAD"):
        case "fail":
            raise ModelError("no weights for a test")
        case "hang":
            threading.Event().wait()
    return FakeDetector()
