"""The application and its server process."""

import asyncio
import contextlib
import logging
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import ApiError, from_status
from app.intake.uploads import BodyLimit
from app.observe import Observe
from app.routes import detect, system
from app.service import Loader, Service, State, load_detector
from app.settings import Settings

log = logging.getLogger(__name__)

DESCRIPTION = """Tells AI-generated images from photographs. A verdict is evidence, not proof.
No image is ever stored or logged."""


def create_app(settings: Settings, load: Loader = load_detector) -> FastAPI:
    """Build the application; its lifespan loads the model while probes are answered.

    Args:
        settings: see `app.settings`.
        load: gives the detector.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service: Service = app.state.service
        loading = asyncio.create_task(service.start(app.state.load_failed))
        yield
        service.drain()
        loading.cancel()
        await asyncio.to_thread(service.stop)

    app = FastAPIOffline(
        title="NS-Net",
        description=DESCRIPTION,
        version=version("nsnet"),
        docs_url="/docs" if settings.docs else None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect is built from what the client says of this host
    )
    app.state.service = Service(settings, load)
    app.state.load_failed = lambda: None
    app.include_router(detect.router)
    app.include_router(system.router)
    app.add_exception_handler(ApiError, _problem)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    app.add_middleware(Observe, metrics=app.state.service.metrics)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101  (registered for it)
    if getattr(request.scope.get("route"), "path", "").startswith("/detect"):  # probes are no work
        request.app.state.service.metrics.rejected.labels(error.code).inc()
    return error.response(request.state.request_id)


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    return from_status(error.status_code, error.headers).response(request.state.request_id)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for it)
    names = sorted({str(e["loc"][-1]) for e in error.errors() if e["loc"][0] == "query"})
    detail = f"Query parameters with a wrong value: {', '.join(names)}."
    return await _problem(request, ApiError("validation_error", detail))


class Server(uvicorn.Server):
    """uvicorn, draining on SIGTERM: readiness fails first, then the socket closes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Remember the loop, then serve."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain; a second signal, or an interrupt from the keyboard, does not wait."""
        delay = self._service.settings.drain_delay_s
        if sig == signal.SIGTERM and delay and self._service.state is not State.DRAINING:
            self._service.drain()
            assert self._loop is not None  # noqa: S101  (signals are handled while serving)
            self._loop.call_soon_threadsafe(self._loop.call_later, delay, self.close)
            return
        self._service.drain()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.close()

    def close(self) -> None:
        """Stop listening; requests under way are finished."""
        # Not uvicorn's own handler: that one raises the signal again at the end, and a drained
        # server would exit with the signal's status instead of 0.
        self.should_exit = True


def make_server(app: FastAPI, settings: Settings) -> Server:
    """Build the server of an application; not yet listening."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        root_path=settings.root_path,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        lifespan="on",
    )
    server = Server(config, service)
    app.state.load_failed = server.close
    return server


def serve(settings: Settings, load: Loader = load_detector) -> int:
    """Serve until a signal; returns the process's exit status."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for note in settings.notes:
        log.warning("%s", note)
    app = create_app(settings, load)
    server = make_server(app, settings)
    with contextlib.suppress(SystemExit):  # uvicorn's, where it cannot listen: it has not started
        server.run()
    service: Service = app.state.service
    status = 1 if service.state is State.FAILED or not server.started else 0
    if service.busy:
        # Nobody waits for it, but the interpreter's own end would; or, where it comes upon a thread
        # in native code, abort.
        logging.shutdown()
        os._exit(status)
    return status
