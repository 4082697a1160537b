"""The Ray Serve application: ingress -> decoding -> scoring, each with replicas of its own.

An ingress is the service with its doors, desk and contract; a picture goes from a decoder to a
scorer through Ray's object store. `deploy/ray` has what it is deployed with.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from starlette.types import ASGIApp

from app.backend import Outcome
from app.decoding.opening import open_upload
from app.decoding.pool import Opened
from app.errors import ApiError
from app.fleet.backend import Handle, fleet
from app.fleet.front import OneRequestId
from app.intake.uploads import Upload
from app.local import Loader, load_detector, load_warm, make_decoders
from app.logs import set_up_logs
from app.main import create_app
from app.metrics import Metrics
from app.scoring import Scorer
from app.settings import Settings, load_settings
from app.workers import Workers

if TYPE_CHECKING:  # torch comes with it
    from model.detector import About

log = logging.getLogger(__name__)


def application(
    settings: Settings | None = None,
    load: Loader = load_detector,
    *,
    decoding: Mapping[str, Any] | None = None,
    scoring: Mapping[str, Any] | None = None,
) -> serve.Application:
    """The application, to be run on a cluster.

    Args:
        settings: the service's; None: each replica reads its environment.
        load: gives the detector.
        decoding: options of that deployment, over its own.
        scoring: likewise.
    """
    inner = settings and settings.for_backend()  # where only doors change, no scorer loads anew
    decoders = _deployment(Decoding, "decoding", 2, decoding).bind(inner)
    scorers = _deployment(Scoring, "scoring", 64, scoring).bind(inner, load)
    front = _deployment(serve.ingress()(Ingress), "ingress", 1000, None)
    return front.bind(settings, decoders, scorers)


def build(_: dict[str, str]) -> serve.Application:
    """The application, as a Serve config file names it."""
    return application()


_DRAIN_S = 75.0  # above twice the deadline: of a replica that is not needed, no request is cut off


def _deployment(
    replica: type, name: str, most: int, options: Mapping[str, Any] | None
) -> serve.Deployment:
    """Replicas of a class, each with so many requests at most."""
    chosen: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": most,
        "graceful_shutdown_timeout_s": _DRAIN_S,
        **(options or {}),
    }
    deployment: serve.Deployment = serve.deployment(**chosen)(replica)
    return deployment


class Decoding:
    """Decodes uploads, each in a process that may do nothing else; one at a time.

    Args:
        settings: see `application`.
    """

    def __init__(self, settings: Settings | None) -> None:
        self._settings = _read(settings).model_copy(update={"decode_workers": 1})
        # What nobody waits for any more leaves its queue: the client may have sent many.
        self._threads = Workers("decode", 1, self._settings.stuck_after_s)
        self._decoders = make_decoders(self._settings, Metrics())
        self._decoders.start()
        self._decoders.check()

    async def __call__(self, data: bytes, min_side: int, identifier: str) -> Opened | ApiError:
        """Decode a file, and read what it declares.

        Args:
            data: the file.
            min_side: smallest side that the detector takes, pixels.
            identifier: of the request, for the log.
        """
        upload = Upload()
        upload.add(data)
        return await self._threads.run(
            functools.partial(
                open_upload, self._decoders, upload, self._settings, min_side, identifier
            )
        )

    async def ready(self) -> None:
        """Nothing: whoever asks knows the way."""

    def check_health(self) -> None:
        """Ray replaces this replica where it raises."""
        if not self._threads.alive:
            raise RuntimeError("a decoder does not answer")
        if not self._decoders.alive:
            self._decoders.check()

    def __del__(self) -> None:
        self._threads.stop()
        self._decoders.stop()


class Scoring:
    """Scores pictures in batches, as they come: the device is this replica's, or its share of one.

    Args:
        settings: see `application`.
        load: gives the detector.
    """

    def __init__(self, settings: Settings | None, load: Loader) -> None:
        settings = _read(settings)
        if not settings.torch_threads:  # the machine's cores are not all its own
            context: Any = ray.get_runtime_context()
            cores = int(context.get_assigned_resources().get("CPU", 1))
            settings = settings.model_copy(update={"torch_threads": max(1, cores)})
        self._scorer = Scorer(load_warm(settings, load), settings, Metrics())
        self._scorer.start()

    async def __call__(
        self, opened: Opened | ApiError, identifier: str, explain: bool
    ) -> tuple[tuple[str, str, str], Outcome]:
        """Score a picture; with what has scored it, see `About.identity`.

        Args:
            opened: by `Decoding`.
            identifier: of the request, for the log.
            explain: whether the score is to come with evidence.
        """
        model = self._scorer.detector.about.identity
        if isinstance(opened, ApiError):
            return model, opened
        # Not after this one: were it the image that did it, it would be asked of another replica.
        if not self._scorer.alive:
            _end("the device does not answer any more")
        self._scorer.expect(1)
        try:
            return model, await self._scorer.make(lambda: opened, identifier, explain=explain)
        finally:
            self._scorer.expect(-1)

    async def about(self) -> About:
        """What is loaded."""
        return self._scorer.detector.about

    def check_health(self) -> None:
        """Ray replaces this replica where it raises."""
        if not self._scorer.alive:
            raise RuntimeError("the device does not answer")

    def __del__(self) -> None:
        self._scorer.stop()


class Ingress:
    """The service without its own server: doors, desk and contract.

    Args:
        settings: see `application`.
        decoding: of `Decoding`.
        scoring: of `Scoring`.

    Raises:
        SettingsError: it would serve everybody by an oversight.
    """

    async def __init__(  # type: ignore[misc]
        self, settings: Settings | None, decoding: Handle, scoring: Handle
    ) -> None:
        self._settings = _read(settings)
        self._settings.check_access(anywhere=True)  # Ray's proxies listen where they like
        about = await scoring.about.remote()
        await decoding.ready.remote()  # or the first request would wait until it is found
        self._fleet = fleet(about, decoding, scoring)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application that Ray's proxies hand requests to."""
        return OneRequestId(create_app(self._settings, self._fleet))


def _end(reason: str) -> None:
    """End this replica at once: what it has is asked of others, and Ray starts another.

    Failing at once, it would be the one with the least to do, and get most of what comes until its
    health has been checked three times.
    """
    log.error("this replica ends: %s", reason)
    logging.shutdown()
    os._exit(1)


def _read(settings: Settings | None) -> Settings:
    """The settings of a replica, whose log they shape."""
    settings = settings or load_settings()
    set_up_logs(settings)
    return settings
