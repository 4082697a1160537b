"""One image's way through the service: upload -> picture -> look -> queue -> score -> answer."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.audit import AuditLog
from app.decoding.pool import Decoders, DecodersError
from app.errors import ApiError, from_image, log_unexpected, out_of_memory, overloaded
from app.evidence import Explain, write_evidence
from app.intake.places import Places
from app.intake.uploads import Upload
from app.metrics import Metrics
from app.queue import DeviceQueue, Pending
from app.results import Passing, Results
from app.schemas import (
    DetectionOut,
    EvidenceOut,
    ImageOut,
    ModelOut,
    ProvenanceOut,
    ThresholdsOut,
    TimingsOut,
)
from app.settings import Settings
from app.workers import Workers
from model.images import Facts, ImageError
from model.verdicts import Thresholds, Verdict

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About, Look, Score

log = logging.getLogger(__name__)

# What is worth keeping of an image: verdicts are taken afterwards, by the cuts of each request.
Result: TypeAlias = "tuple[Facts, ProvenanceOut | None, Score, TimingsOut]"

_NO_TIME = TimingsOut(decode=0, patches=0, queue=0, inference=0)


class ServedDetector(Protocol):
    """What the service needs of a detector; see `model.detector.Detector`.

    `look` and a score's `more` run in many threads at once, all else in one.
    """

    about: About

    def warm_up(self, images: Sequence[int]) -> None:
        """Run blank batches of so many images."""

    def torch_threads(self, threads: int) -> int:
        """How many of torch's threads should help the forward, of so many."""

    def look(self, pixels: NDArray[np.uint8], *, explain: bool = False) -> Look:
        """Cut what is looked at first out of a picture, which is not needed afterwards."""

    def submit(self, looks: Sequence[Look]) -> Pending:
        """Start scoring."""

    def verdict(self, score: Score, cut: float | None) -> Verdict:
        """What is said of a picture, by the detector's cuts or by one of the client's own."""


@asynccontextmanager
async def within(deadline: float) -> AsyncIterator[None]:
    """Turn passing `deadline` (of `time.monotonic()`) into deadline_exceeded."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            yield
    except TimeoutError:
        raise ApiError("deadline_exceeded", "The image was not scored in time.") from None


class Desk:
    """Takes uploads, gives answers.

    What waits here is small. An upload waits for a decoder; of a picture that waits for the device
    only its facts and its canvases are left.

    Args:
        detector: loaded and warm.
        queue: the detector's.
        decoders: started.
        results: kept and shared, by content and model.
        settings: the service's.
        places: told of every answer.
        metrics: of images and stages.
        audit: told what is said of every image.
        stuck_after_s: a thread that works longer than this on one image hangs.
    """

    # What is under way at the end answers nobody any more: its thread may be left behind.
    JOIN_S = 2.0

    def __init__(
        self,
        detector: ServedDetector,
        queue: DeviceQueue,
        decoders: Decoders,
        results: Results[Result],
        settings: Settings,
        places: Places,
        metrics: Metrics,
        audit: AuditLog,
        stuck_after_s: float,
    ) -> None:
        self.detector = detector
        self._queue = queue
        self._decoders = decoders
        self._results = results
        self._limits = settings.limits(detector.about.min_side)
        self._reads_provenance = settings.provenance
        self._places = places
        self._metrics = metrics
        self._audit = audit
        # From the start: Prometheus knows no increase of a series that is not there yet.
        sha256 = detector.about.sha256
        self._verdicts = {v: metrics.predictions.labels(v.value, sha256) for v in Verdict}
        self._scores = metrics.score.labels(sha256)
        # Digests are not made behind first looks: what is known already need not wait for them. Nor
        # are second looks: their pictures came first.
        self._digests = Workers("digest", 1, stuck_after_s)
        self._first_looks = Workers("first look", settings.decoders(), stuck_after_s)
        self._looks = Workers("look", 1, stuck_after_s)
        self._workers = (self._digests, self._first_looks, self._looks)

    @property
    def waiting(self) -> int:
        """Looks that wait for the device."""
        return self._queue.waiting

    @property
    def sharing(self) -> int:
        """Images that wait for what is made of the same upload by another."""
        return self._results.sharing

    @property
    def alive(self) -> bool:
        """Whether the device and every thread here get on."""
        threads = all(workers.alive for workers in self._workers)
        return threads and self._queue.alive and self._decoders.alive

    @property
    def busy(self) -> bool:
        """Whether a thread lives that is the device's or works; after `stop`, nothing ends it."""
        return self._queue.busy or self._working

    @property
    def _working(self) -> bool:
        return any(workers.busy for workers in self._workers)

    def stop(self) -> None:
        """End the threads; waits for what they hold, up to `JOIN_S`."""
        for workers in self._workers:
            workers.stop()
        end = time.monotonic() + self.JOIN_S
        while self._working and time.monotonic() < end:
            time.sleep(0.01)
        self._queue.stop()

    def model(self) -> ModelOut:
        """Which model answers."""
        about = self.detector.about
        return ModelOut(name=about.name, version=about.version, sha256=about.sha256)

    async def answer(
        self,
        upload: Upload,
        *,
        identifier: str,
        threshold: float | None,
        deadline: float,
        explain: Explain = Explain.NOTHING,
    ) -> DetectionOut:
        """Score one image, and say what that means.

        Args:
            upload: the file; taken from it.
            identifier: the answer's id.
            threshold: one cut instead of the checkpoint's two.
            deadline: of `time.monotonic()`.
            explain: how much evidence is added.

        Raises:
            ApiError: whatever went wrong, in the contract's terms.
        """
        outcome = "cancelled"
        said: DetectionOut | str = outcome
        digest: str | None = None
        try:
            async with within(deadline):
                key, kept = await self._begun(upload, identifier, explain is not Explain.NOTHING)
                digest = key[0]
                result = kept or await self._results.made(key)
                evidence = await self._evidence(result, explain)
            cached = kept is not None
            said = answer = self._write(
                result, evidence, digest, identifier, threshold, cached=cached
            )
            outcome = "ok"
        except ApiError as error:
            outcome, said = "error", error.code
            raise
        except Exception as error:  # noqa: BLE001  (a bug, but this image's alone)
            problem = _unexpected(error, identifier)
            outcome, said = "error", problem.code
            raise problem from None
        else:
            self._verdicts[answer.verdict].inc()
            self._scores.observe(answer.score)
            if answer.provenance is not None:
                self._metrics.provenance.labels(answer.provenance.declares).inc()
            return answer
        finally:
            upload.discard()
            self._metrics.images.labels(outcome).inc()
            self._audit.record(identifier, digest, said, self.detector.about.sha256)
            self._places.answered()

    async def _evidence(self, result: Result, explain: Explain) -> EvidenceOut | None:
        """Evidence as it is answered; what is kept is plain numbers."""
        facts, _, score, _ = result
        if score.evidence is None:
            return None
        size = (facts.width, facts.height) if explain is Explain.WITH_HEATMAP else None
        return await self._looks.run(functools.partial(write_evidence, score.evidence, size))

    def _write(
        self,
        result: Result,
        evidence: EvidenceOut | None,
        digest: str,
        identifier: str,
        threshold: float | None,
        *,
        cached: bool,
    ) -> DetectionOut:
        """The answer: the only place where a verdict is taken."""
        facts, provenance, score, timings = result
        cuts = self.detector.about.thresholds
        if threshold is not None:
            cuts = Thresholds.single(threshold)
        return DetectionOut(
            id=identifier,
            verdict=self.detector.verdict(score, threshold),
            score=score.value,
            looks=score.looks,
            thresholds=ThresholdsOut(real_below=cuts.real_below, ai_above=cuts.ai_above),
            model=self.model(),
            image=ImageOut(
                sha256=digest, format=facts.format, width=facts.width, height=facts.height
            ),
            warnings=[*facts.warnings, *score.warnings],
            cached=cached,
            timings_ms=_NO_TIME if cached else timings,
            provenance=provenance,
            evidence=evidence,
        )

    async def _begun(
        self, upload: Upload, identifier: str, explain: bool
    ) -> tuple[tuple[str, str, bool], Result | None]:
        """The key of what is made of these bytes, once for all who send them; or of a result kept.

        Until that is known, they are expected at the device.
        """
        self._queue.expect(1)
        try:
            digest = await self._digests.run(upload.digest)
            # Nothing that a request says changes a score: its cut is laid against it afterwards,
            # and evidence is made beside it.
            key = (digest, self.detector.about.sha256, explain)
            kept = self._results.kept(key)
            if kept is None and not self._results.making(key):
                self._results.make(key, self._make(upload.moved(), identifier, explain))
            upload.discard()  # others may have sent the same
            return key, kept
        finally:
            self._queue.expect(-1)

    async def _make(
        self, upload: Upload, identifier: str, explain: bool
    ) -> Result | Passing[Result] | ApiError:
        """Score an upload that nobody else has sent.

        Where what it declares was not read to its end, which another time may, that is not kept.
        Errors are returned: what is raised holds on to whatever was under way.
        """
        try:
            begun = await self._first_looks.run(
                functools.partial(self._begin, upload, identifier, explain)
            )
            if isinstance(begun, ApiError):
                return begun
            facts, provenance, is_read, look, decode_s, cut_s = begun
            del begun
            score, queue_s, forward_s = await self._queue.score(look)
            while score.more is not None:
                look, again_s = await self._looks.run(functools.partial(self._next, score.more))
                del score  # it holds what the look was cut from
                score, queued_s, forward_again_s = await self._queue.score(look, next_up=True)
                cut_s += again_s
                queue_s += queued_s
                forward_s += forward_again_s
        except ApiError as error:
            return error.with_traceback(None)
        except Exception as error:  # noqa: BLE001  (a bug)
            return _unexpected(error, identifier)
        timings = TimingsOut(
            decode=_ms(decode_s), patches=_ms(cut_s), queue=_ms(queue_s), inference=_ms(forward_s)
        )
        result = facts, provenance, score, timings
        return result if is_read else Passing(result)

    def _begin(
        self, upload: Upload, identifier: str, explain: bool
    ) -> tuple[Facts, ProvenanceOut | None, bool, Look, float, float] | ApiError:
        """Decode, and cut the first look; with the seconds of both. Runs in a thread."""
        start = time.monotonic()
        try:
            if self._reads_provenance:
                picture, provenance, is_read = self._decoders.inspect(upload.parts(), self._limits)
            else:
                picture = self._decoders.decode(upload.parts(), self._limits)
                provenance, is_read = None, True
            decoded = time.monotonic()
            look = self.detector.look(picture.pixels, explain=explain)
        except ImageError as error:
            return from_image(error)
        except DecodersError:
            return overloaded()
        except Exception as error:  # noqa: BLE001  (a bug)
            return _unexpected(error, identifier)
        cut = time.monotonic()
        self._metrics.stage.labels("decode").observe(decoded - start)
        self._metrics.stage.labels("patches").observe(cut - decoded)
        return picture.facts, provenance, is_read, look, decoded - start, cut - decoded

    def _next(self, more: Callable[[], Look]) -> tuple[Look, float]:
        """Cut the next look, with the seconds it took. Runs in the thread for looks."""
        start = time.monotonic()
        look = more()
        took = time.monotonic() - start
        self._metrics.stage.labels("patches").observe(took)
        return look, took


def _unexpected(error: Exception, identifier: str) -> ApiError:
    """A bug, or no memory."""
    log_unexpected(log, error, identifier)
    if out_of_memory(error):
        return overloaded()
    return ApiError("internal_error", "The image could not be handled.")


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
