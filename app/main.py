"""The application and its server process."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import FrameType

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.backend import BackendFactory
from app.errors import ApiError, from_status
from app.front import Cors, InferenceErrors, KnownHosts, RootPath, SecurityHeaders
from app.intake.uploads import BodyLimit
from app.local import local
from app.logs import set_up_logs
from app.observe import Observe
from app.protocol import Config, Protocol, listen
from app.routes import detect, documentation, inference, system
from app.routes.page import add_page
from app.service import Service, State
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)

DESCRIPTION = """Tells AI-generated images from photographs. A verdict is evidence, not proof.
No image is ever stored or logged."""


def create_app(settings: Settings, factory: BackendFactory | None = None) -> FastAPI:
    """Build the application; its lifespan loads the model while probes are answered.

    Args:
        settings: see `app.settings`.
        factory: gives what makes results; None: this machine does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service: Service = app.state.service
        tasks = [
            asyncio.create_task(service.start(app.state.load_failed)),
            asyncio.create_task(service.tidy()),
        ]
        yield
        service.drain()
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(service.stop)

    app = FastAPIOffline(
        title="NS-Net",
        description=DESCRIPTION,
        version=version("nsnet"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect is built from what the client says of this host
    )
    app.state.load_failed = lambda: None
    keyed = _KEY_SCHEMES if settings.api_keys or settings.api_keys_file else ()
    app.include_router(detect.router, dependencies=keyed)
    app.include_router(system.details, dependencies=keyed)
    app.include_router(system.probes)
    if settings.oip:
        app.include_router(inference.keyed, dependencies=keyed)
        app.include_router(inference.open_to_all)
    if settings.operations_port is None:
        app.include_router(system.exposition)
    documentation.add_examples(app)
    if settings.docs:
        app.add_route("/docs", documentation.docs, include_in_schema=False)
    if settings.page:
        add_page(app, settings)
    _stand_before(app, Service(settings, factory or local()), known_hosts_only=True)
    if settings.oip:
        app.add_middleware(InferenceErrors, root_path=settings.root_path)
    return app


def operations_app(service: Service) -> FastAPI:
    """Build what the operations port serves: probes and metrics, to whichever host name."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(system.probes)
    app.include_router(system.exposition)
    _stand_before(app, service, known_hosts_only=False)
    return app


# What `authorized` looks for, where the OpenAPI document can say so.
_KEY_SCHEMES = (
    Depends(HTTPBearer(auto_error=False, description="one of the API keys")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="the same")),
)


def _stand_before(app: FastAPI, service: Service, *, known_hosts_only: bool) -> None:
    """Put before the routes what every request passes, and give errors their shape."""
    settings = service.settings
    app.state.service = service
    app.add_exception_handler(ApiError, _problem)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    if settings.allowed_hosts and known_hosts_only:
        app.add_middleware(KnownHosts, hosts=settings.allowed_hosts)
    app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(Observe, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(SecurityHeaders)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101  (registered for it)
    if request.method == "POST":  # probes are no work
        request.app.state.service.metrics.rejected.labels(error.code).inc()
    return error.response(request.state.request_id)


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    return from_status(error.status_code, error.headers).response(request.state.request_id)


# What a query parameter is.
_VALUES = {
    "threshold": "a number from 0 to 1",
    "explain": "true or false",
    "heatmap": "png or none",
}


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for it)
    names = sorted({str(e["loc"][-1]) for e in error.errors() if e["loc"][0] == "query"})
    detail = " ".join(f"`{name}` is {_VALUES.get(name, 'something else')}." for name in names)
    return await _problem(request, ApiError("validation_error", detail))


class Server(uvicorn.Server):
    """uvicorn, draining on SIGTERM: readiness fails first, then the socket closes.

    Args:
        service: behind the application.
        config: what is served on the first port.
        sockets: that listen on it.
        operations: what is served on another port, and the sockets that listen there.
    """

    def __init__(
        self,
        service: Service,
        config: Config,
        sockets: list[socket.socket],
        operations: tuple[Config, list[socket.socket]] | None = None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._sockets = sockets
        self._operations = operations
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop, then serve."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets or self._sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections on both ports; they share what is known of connections and tasks."""
        await super().startup(sockets)
        listening = list(self._sockets)
        if self._operations is not None:
            config, more = self._operations
            loop = asyncio.get_running_loop()
            for one in more:
                listener = await loop.create_server(
                    lambda: Protocol(config, self.server_state, self.lifespan.state), sock=one
                )
                self.servers.append(listener)
            listening += more
        for one in listening:
            log.info("running on http://%s", _address(*one.getsockname()[:2]))

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
    """Build the server of an application; it listens, and answers once it runs.

    Raises:
        SettingsError: a port cannot be listened on.
    """
    service: Service = app.state.service

    def config(served: FastAPI, settings: Settings) -> Config:
        return Config(served, settings, lambda code: service.metrics.rejected.labels(code).inc())

    sockets = _listen(settings.host, settings.port, "NSNET_PORT")
    operations = None
    if settings.operations_port is not None:
        try:
            more = _listen(settings.host, settings.operations_port, "NSNET_OPERATIONS_PORT")
        except SettingsError:
            for one in sockets:
                one.close()
            raise
        without_inference = settings.model_copy(update={"oip": False})
        operations = config(operations_app(service), without_inference), more
    server = Server(service, config(app, settings), sockets, operations)
    app.state.load_failed = server.close
    return server


def _listen(host: str, port: int, variable: str) -> list[socket.socket]:
    try:
        return listen(host, port)
    except OSError as error:
        # What stands in brackets says the address once more.
        reason = (error.strerror or "no such address").partition(" (")[0].lower()
        where = _address(host, port)
        raise SettingsError(f"NSNET_HOST, {variable}: cannot listen on {where}: {reason}") from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(settings: Settings, factory: BackendFactory | None = None) -> int:
    """Serve until a signal; returns the process's exit status.

    Raises:
        SettingsError: it does not start with these.
    """
    settings.check_access()
    set_up_logs(settings)
    app = create_app(settings, factory)
    server = make_server(app, settings)
    for note in settings.notes:
        log.warning("%s", note)
    with contextlib.suppress(SystemExit):  # uvicorn's, where the application does not start
        server.run()
    service: Service = app.state.service
    status = 1 if service.state is State.FAILED or not server.started else 0
    if service.busy:
        # Nobody waits for it, but the interpreter's own end would; or, where it comes upon a thread
        # in native code, abort.
        logging.shutdown()
        os._exit(status)
    return status
