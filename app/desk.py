"""One image's way through the service: upload -> result -> answer; the backend makes results."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.audit import AuditLog
from app.backend import Backend, Result
from app.errors import ApiError, unexpected
from app.evidence import Explain, write_evidence
from app.intake.places import Places
from app.intake.uploads import Upload
from app.metrics import Metrics
from app.results import Results
from app.schemas import DetectionOut, EvidenceOut, ImageOut, ModelOut, ThresholdsOut, TimingsOut
from app.settings import Settings
from app.workers import Workers
from model.verdicts import Thresholds, Verdict

log = logging.getLogger(__name__)

_NO_TIME = TimingsOut(decode=0, patches=0, queue=0, inference=0)


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

    Args:
        backend: loaded and started; makes what is asked for.
        results: kept and shared, by content and model.
        settings: the service's.
        places: told of every answer.
        metrics: of images.
        audit: told what is said of every image.
    """

    def __init__(
        self,
        backend: Backend,
        results: Results[Result],
        settings: Settings,
        places: Places,
        metrics: Metrics,
        audit: AuditLog,
    ) -> None:
        self.about = backend.about
        self._backend = backend
        self._results = results
        self._places = places
        self._metrics = metrics
        self._audit = audit
        # From the start: Prometheus knows no increase of a series that is not there yet.
        sha256 = self.about.sha256
        self._verdicts = {v: metrics.predictions.labels(v.value, sha256) for v in Verdict}
        self._scores = metrics.score.labels(sha256)
        # Apart from the backend's threads: what is known already need not wait for them.
        self._digests = Workers("digest", 1, settings.stuck_after_s)
        self._writing = Workers("evidence", 1, settings.stuck_after_s)
        self._workers = (self._digests, self._writing)

    @property
    def waiting(self) -> int:
        """Looks that wait for the device."""
        return self._backend.waiting

    @property
    def sharing(self) -> int:
        """Images that wait for what is made of the same upload by another."""
        return self._results.sharing

    @property
    def alive(self) -> bool:
        """Whether the backend and every thread here get on."""
        return self._backend.alive and all(workers.alive for workers in self._workers)

    @property
    def busy(self) -> bool:
        """Whether a thread here works; after `stop`, nothing ends it."""
        return any(workers.busy for workers in self._workers)

    def stop(self) -> None:
        """End the threads."""
        for workers in self._workers:
            workers.stop()

    def model(self) -> ModelOut:
        """Which model answers."""
        about = self.about
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
            problem = unexpected(log, error, identifier)
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
            self._audit.record(identifier, digest, said, self.about.sha256)
            self._places.answered()

    async def _evidence(self, result: Result, explain: Explain) -> EvidenceOut | None:
        """Evidence as it is answered; what is kept is plain numbers."""
        facts, evidence = result.facts, result.score.evidence
        if evidence is None:
            return None
        size = (facts.width, facts.height) if explain is Explain.WITH_HEATMAP else None
        return await self._writing.run(functools.partial(write_evidence, evidence, size))

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
        facts, score = result.facts, result.score
        cuts = self.about.thresholds
        if threshold is not None:
            cuts = Thresholds.single(threshold)
        return DetectionOut(
            id=identifier,
            verdict=self.about.verdict(score, threshold),
            score=score.value,
            looks=score.looks,
            thresholds=ThresholdsOut(real_below=cuts.real_below, ai_above=cuts.ai_above),
            model=self.model(),
            image=ImageOut(
                sha256=digest, format=facts.format, width=facts.width, height=facts.height
            ),
            warnings=[*facts.warnings, *score.warnings],
            cached=cached,
            timings_ms=_NO_TIME if cached else result.timings,
            provenance=result.provenance,
            evidence=evidence,
        )

    async def _begun(
        self, upload: Upload, identifier: str, explain: bool
    ) -> tuple[tuple[str, str, bool], Result | None]:
        """The key of what is made of these bytes, once for all who send them; or of a result kept.

        Until that is known, they are expected at the device.
        """
        self._backend.expect(1)
        try:
            digest = await self._digests.run(upload.digest)
            # Nothing that a request says changes a score: its cut is laid against it afterwards,
            # and evidence is made beside it.
            key = (digest, self.about.sha256, explain)
            kept = self._results.kept(key)
            if kept is None and not self._results.making(key):
                work = self._backend.make(upload.moved(), identifier, explain=explain)
                self._results.make(key, work)
            upload.discard()  # others may have sent the same
            return key, kept
        finally:
            self._backend.expect(-1)
