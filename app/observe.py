"""The outermost ASGI layer: request id, access log, HTTP metrics, and errors as problems."""

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.errors import ApiError, log_unexpected
from app.front import ASKED_BY_MACHINES, request_id_of
from app.metrics import Metrics

log = logging.getLogger("nsnet.access")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observe:
    """ASGI middleware around everything else.

    The log line holds the request's id, the name of its key and the route's template, never a path,
    query, file name or address.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        start = time.monotonic()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except ApiError as error:  # from the middleware between here and the routes
            self.metrics.rejected.labels(error.code).inc()
            await error.response(request_id)(scope, receive, observed)
        except asyncio.CancelledError:
            # The server stops and has waited long enough. This is the task's end: nothing above
            # is left to tell, but the client.
            if status == 0:
                refusal = ApiError("draining", "The server stopped first.", retry_after=1)
                await refusal.response(request_id)(scope, receive, observed)
        except Exception as error:  # noqa: BLE001  (a bug: the client gets a problem all the same)
            self.metrics.rejected.labels("internal_error").inc()
            log_unexpected(log, error, request_id)
            if status == 0:
                answer = ApiError("internal_error", "The request could not be handled.")
                await answer.response(request_id)(scope, receive, observed)
        finally:
            took = time.monotonic() - start
            route = _template(scope)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.request_duration.labels(method, route).observe(took)
            log.log(
                # Machines say themselves what they find.
                logging.DEBUG if route in ASKED_BY_MACHINES else logging.INFO,
                "request",
                extra={
                    "method": method,
                    "route": route,
                    "status": status,
                    "duration_ms": round(1000 * took, 1),
                },
            )


def _template(scope: Scope) -> str:
    """The path of the route that took a request, as the application wrote it; or `unmatched`.

    FastAPI puts only its own kind of route into the scope. A page or a folder of files is known by
    what answers there.
    """
    taken, endpoint = scope.get("route"), scope.get("endpoint")
    if taken is None and endpoint is not None:
        for route in scope["app"].routes:
            if endpoint in (getattr(route, "endpoint", None), getattr(route, "app", None)):
                taken = route
    return getattr(taken, "path", "unmatched")
