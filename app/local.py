"""The backend on this machine: decoders in processes of their own, and a detector on its device."""

from __future__ import annotations

import contextlib
import functools
from asyncio import to_thread
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from app.backend import BackendFactory, Outcome
from app.decoding.opening import open_upload
from app.decoding.pool import Decoders, DecodersError
from app.intake.uploads import Upload
from app.metrics import Metrics
from app.scoring import Scorer, ServedDetector
from app.settings import Settings
from model.hardware import spare_torch_its_cache, use_threads

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About, Detector

Loader: TypeAlias = Callable[[Settings], ServedDetector]


def load_detector(settings: Settings) -> Detector:
    """Load the detector that the settings name."""
    spare_torch_its_cache()
    from model.detector import Detector  # brings torch: settings are read without it

    return Detector.load(
        settings.checkpoint,
        runtime=settings.runtime(),
        backbone=settings.backbone,
        backbone_sha256=settings.backbone_sha256,
        canvases=settings.canvases,
    )


def load_warm(settings: Settings, load: Loader = load_detector) -> ServedDetector:
    """Load the detector, so that the first image pays for nothing."""
    use_threads(settings.threads())
    detector = load(settings)
    detector.warm_up(sorted({1, settings.max_batch}))
    return detector


def make_decoders(settings: Settings, metrics: Metrics) -> Decoders:
    """Decoders as the settings have them, yet to be started."""
    return Decoders(
        settings.decoders(),
        cpu_s=settings.decode_cpu_s,
        wall_s=settings.deadline_s,
        replaced=lambda reason: metrics.decoders_replaced.labels(reason).inc(),
        trust_anchors=settings.anchors(),
    )


def local(load: Loader = load_detector, decoders: Decoders | None = None) -> BackendFactory:
    """The backend on this machine.

    Args:
        load: gives the detector.
        decoders: somebody else's, who starts and stops them; None: of its own.
    """
    return lambda settings, metrics: LocalBackend(settings, metrics, load, decoders)


class LocalBackend:
    """See `local`, and `app.backend.Backend`."""

    def __init__(
        self, settings: Settings, metrics: Metrics, load: Loader, decoders: Decoders | None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._owns_decoders = decoders is None
        self.decoders = decoders or make_decoders(settings, metrics)
        self._detector: ServedDetector | None = None
        self._started: Scorer | None = None

    @property
    def about(self) -> About:
        """What is loaded."""
        return self._scorer.detector.about

    @property
    def _scorer(self) -> Scorer:
        assert self._started is not None  # noqa: S101  (nothing is asked before)
        return self._started

    def load(self) -> None:
        """Load and warm up the detector, while the decoders start."""
        if self._owns_decoders:
            self.decoders.start()
        self._detector = load_warm(self._settings, self._load)
        self.decoders.check()

    def start(self) -> None:
        """Start the device thread."""
        assert self._detector is not None  # noqa: S101  (it is loaded)
        self._started = Scorer(self._detector, self._settings, self._metrics)
        self._started.start()

    async def make(self, upload: Upload, identifier: str, *, explain: bool) -> Outcome:
        """Decode and score an upload; it waits for a decoder as a file, and then as canvases."""
        opening = functools.partial(
            open_upload, self.decoders, upload, self._settings, self.about.min_side, identifier
        )
        return await self._scorer.make(opening, identifier, explain=explain)

    def expect(self, images: int) -> None:
        """See `DeviceQueue.expect`."""
        self._scorer.expect(images)

    async def tidy(self) -> None:
        """Start decoders that could not be: while there are none, no image comes that would try."""
        if not self.decoders.alive:
            with contextlib.suppress(DecodersError):
                await to_thread(self.decoders.check)

    def stop(self) -> None:
        """End the decoders, then the threads, which may wait for one."""
        if self._owns_decoders:
            self.decoders.stop()
        if self._started is not None:
            self._started.stop()

    @property
    def waiting(self) -> int:
        """Looks that wait for the device."""
        return self._scorer.waiting

    @property
    def alive(self) -> bool:
        """Whether device, threads and decoders get on."""
        return self._scorer.alive and self.decoders.alive

    @property
    def busy(self) -> bool:
        """Whether the device thread lives, or another works."""
        return self._started is not None and self._started.busy
