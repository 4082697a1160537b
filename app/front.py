"""What every request passes on its way to a route, and every answer on its way back."""

import json
import re
import uuid
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import MEDIA_TYPE, ApiError

SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer that has none of its own."""

ASKED_BY_MACHINES = frozenset(
    {"/livez", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
)
"""Routes that orchestrators and scrapers ask every few seconds, by whichever address or name."""


_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id_of(given: str) -> str:
    """The id that a client gave its request, where that is a sane one, or a new one."""
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


class SecurityHeaders:
    """ASGI middleware: tells browsers what not to do with an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers that an answer does not have."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "etag" in headers:  # a file of /docs: a browser may keep it
                    headers.setdefault("Cache-Control", "no-cache")
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, guarded)


class Cors(CORSMiddleware):
    """Lets pages of these origins use the service; a key is a header, so no cookie is allowed.

    Args:
        app: what it stands before.
        origins: `scheme://host[:port]` each, or `*`.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "X-API-Key", "X-Request-ID"),
            expose_headers=("Retry-After", "Server-Timing", "X-Request-ID"),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight; a refusal is a problem as any other."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        request_id = request_id_of(request_headers.get("x-request-id", ""))
        headers = {**dict(self.preflight_headers), "X-Request-ID": request_id}
        detail = "Another origin's pages may not send this: see NSNET_CORS_ORIGINS."
        return ApiError("bad_request", detail, headers=headers).response(request_id)


class RootPath:
    """ASGI middleware: below a prefix, whether the reverse proxy strips it from the path or not.

    Args:
        app: what it stands before.
        root_path: empty, or `/prefix`.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give every path its prefix, as ASGI has it."""
        if scope["type"] == "http" and self.root_path:
            path = scope["path"]
            if path != self.root_path and not path.startswith(f"{self.root_path}/"):
                path = self.root_path + path
            scope.update(root_path=self.root_path, path=path)
        await self.app(scope, receive, send)


class KnownHosts:
    """ASGI middleware: answers requests to these hosts, so that no other name's page gets in.

    A page whose name is made to resolve to this server's address (DNS rebinding) is of one origin
    with it, and still sends its own name. Probes and scrapes, which come to an address or to a
    service's name, are always answered: they tell of no image.

    Args:
        app: what it stands before.
        hosts: names or addresses in lower case, without a port; `*.name` is any name below it.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request to a host that is none of these."""
        if scope["type"] == "http" and _route_path(scope) not in ASKED_BY_MACHINES:
            host = _without_port(Headers(scope=scope).get("host", "").lower())
            below = {f"*.{host[i + 1 :]}" for i, letter in enumerate(host[:254]) if letter == "."}
            if host not in self.hosts and not below & self.hosts:
                raise ApiError(
                    "unknown_host",
                    "This server does not answer for that host name; its operator lists names in "
                    "NSNET_ALLOWED_HOSTS.",
                )
        await self.app(scope, receive, send)


class InferenceErrors:
    """ASGI middleware: at `/v2`, an error has the shape that the Open Inference Protocol gives it.

    The outermost: wherever in the application a problem came from, it is told otherwise here.

    Args:
        app: what it stands before.
        root_path: as `RootPath` has it.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write problems as `{"error": "CODE: DETAIL"}`."""
        problem: Message | None = None  # its start, until its body comes

        async def translated(message: Message) -> None:
            nonlocal problem
            if message["type"] == "http.response.start" and is_of_inference(
                scope["path"], self.root_path
            ):
                if MutableHeaders(scope=message).get("content-type") == MEDIA_TYPE:
                    problem = message
                    return
            elif problem is not None:
                body = inference_error(MutableHeaders(scope=problem), message["body"])
                await send(problem)
                message, problem = {**message, "body": body}, None
            await send(message)

        await self.app(scope, receive, translated)


def is_of_inference(path: str, root_path: str) -> bool:
    """Whether a path, with its prefix or without, is one of the Open Inference Protocol's."""
    return f"{path.removeprefix(root_path)}/".startswith("/v2/")


def inference_error(headers: MutableHeaders, problem: bytes) -> bytes:
    """Write a problem as the Open Inference Protocol has it.

    Args:
        headers: the answer's, which are changed to those of what is returned.
        problem: the answer's body.
    """
    told = json.loads(problem)
    body = json.dumps({"error": f"{told['code']}: {told['detail']}"}).encode()
    headers["Content-Type"] = "application/json"
    headers["Content-Length"] = str(len(body))
    return body


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _without_port(host: str) -> str:
    """The host of a Host header; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
