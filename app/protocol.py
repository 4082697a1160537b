"""HTTP/1.1 on the wire: uvicorn's protocol on h11, bounded in time, size and number.

h11 reads a body as a body whatever a client offers to upgrade to, so nothing in it is ever taken
for the next request.
"""

import asyncio
import errno
import http
import math
import re
import socket
import sys
import time
import uuid
from collections.abc import Callable
from enum import Enum
from typing import Any, cast
from urllib.parse import unquote

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.errors import ApiError
from app.front import SECURITY_HEADERS, inference_error, is_of_inference
from app.settings import Settings

HEAD_S = 20.0
"""From a connection's start, or a request's first byte, to the end of its head."""
REST_S = 10.0
"""How long a body may still come whose request is answered, or a client may take to leave."""
REST_BYTES = 256 * 1024 * 1024
"""How much of such a body is read and dropped: a client that still writes does not see an answer
that comes with a reset."""
UNREAD_S = 30.0
"""How long an answer may wait for a client to read 48 kB of it."""

MAX_HEAD_BYTES = 16384
"""Of a request's head, from its first byte through its empty line; of the lines behind a chunked
body as many again."""
MAX_HEADERS = 100
"""Lines of each."""
MAX_PIPELINED = 8
"""Requests in a row that are here before the one before them is answered: a burst of hundreds costs
its sender one packet, and nobody need read the answers."""

# A chunk costs 10 us however few bytes it has: beyond the first so many, their mean is bounded.
_FREE_CHUNKS = 1000
_MEAN_CHUNK_BYTES = 256
_SLICE = 4096

_REQUEST_LINE = re.compile(rb"[!-~]+ ([!-~]+) ")


class Refused(h11.RemoteProtocolError):
    """A request that no route sees."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.detail, error_status_hint=error.status)
        self.error = error


class Connection(h11.Connection):
    """h11's state of a connection, strict with what costs more than its bytes or has two readings.

    Attributes:
        left: bytes still to come of a body whose length was declared.
        head_only: whether the answer is to have no body.
        target: what the request line asks for, once it has come that far, though the rest of the
            head be none.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.left = 0
        self.head_only = False
        self.target: bytes | None = None
        self._chunks = self._bytes = 0

    def start_next_cycle(self) -> None:
        """Go on to the next request."""
        super().start_next_cycle()
        self.head_only = False
        self.target = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Parse the next event.

        Raises:
            h11.RemoteProtocolError: what came is no HTTP, or Refused.
        """
        came = b"" if self.left else self.trailing_data[0]
        if self.their_state is h11.IDLE and (line := _REQUEST_LINE.match(came)):
            self.target = line[1]
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.head_only = event.method == b"HEAD"
        if isinstance(event, h11.Request | h11.EndOfMessage):
            # h11 bounds what is not yet whole; the slice that completes it may have more.
            size = len(came) - len(self.trailing_data[0])
            if size > MAX_HEAD_BYTES or len(event.headers) > MAX_HEADERS:
                raise Refused(_headers_too_large())
        if isinstance(event, h11.Request):
            self._check(event)
        elif isinstance(event, h11.Data):
            self._count(event)
        return event

    def _check(self, request: h11.Request) -> None:
        headers = dict(request.headers)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            raise Refused(ApiError("bad_request", "The request declares its length in two ways."))
        if headers.get(b"upgrade", b"").lower() == b"websocket":
            raise Refused(ApiError("bad_request", "WebSockets are not spoken here."))
        self.left = int(headers.get(b"content-length", 0))
        self._chunks = self._bytes = 0

    def _count(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._bytes += len(data.data)
        self.left = max(0, self.left - len(data.data))
        if self._chunks > _FREE_CHUNKS + self._bytes // _MEAN_CHUNK_BYTES:
            raise Refused(ApiError("bad_request", "The body comes in chunks that are too small."))


class Phase(Enum):
    """What a connection waits for."""

    HEAD = "the client: a request's head"
    WORK = "the application: an answer, which bounds the time of the body itself"
    UNREAD = "the client: to read its answer"
    REST = "the client: the rest of a body that is answered already"
    IDLE = "the client: another request"
    CLOSING = "the client: to leave"


class Config(uvicorn.Config):
    """How an application is served.

    Args:
        app: what is served.
        settings: see `app.settings`.
        refused: told the code of each request that is refused before the application sees it.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refused: Callable[[str], None]) -> None:
        super().__init__(
            cast(Any, app),
            http=Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.forwarded_allow_ips),
            forwarded_allow_ips=settings.forwarded_allow_ips,
            timeout_keep_alive=math.ceil(settings.keep_alive_s),
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
            lifespan="on",
            workers=1,  # whatever WEB_CONCURRENCY says, which other servers read
        )
        self.max_connections = settings.max_connections
        self.inference_root = settings.root_path if settings.oip else None
        self.refused = refused


class Protocol(H11Protocol):
    """One connection."""

    config: Config

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: Connection = Connection()
        self.phase: Phase | None = None
        self.since = 0.0
        self.closing = False
        self._ahead = bytearray()
        self._dropped = 0
        self._pipelined = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- what happens ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in place of one that only waits where all places are taken."""
        self.socket = transport
        super().connection_made(cast(asyncio.Transport, _Transport(self)))
        if self._make_room():
            self._watch()
        else:
            self._refuse(ApiError("queue_full", "Every connection is taken.", retry_after=1))

    def data_received(self, data: bytes) -> None:
        """Parse what came, or drop it where nobody waits for it."""
        if self.phase in (Phase.REST, Phase.CLOSING):
            self._dropped += len(data)
            if self._dropped > REST_BYTES:
                self.socket.abort()
                return
        if self.closing:
            return
        if not self._ahead and self._reads and len(data) <= self.conn.left:
            super().data_received(data)  # of a body, uncopied
        else:
            self._ahead += data
            self._parse()

    @property
    def _reads(self) -> bool:
        """Whether a request is being read; after it, the next one waits for its turn."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _parse(self) -> None:
        """Parse what has come.

        What is read as lines is parsed in slices, each within its bound before the next: 256 kB of
        header lines at once would hold the event loop for 0.1 s.
        """
        while self._ahead and self._reads:
            size = max(_SLICE, self.conn.left)
            data = bytes(self._ahead[:size])
            del self._ahead[:size]
            super().data_received(data)
            if self.closing:
                self._ahead.clear()
        if self._ahead:
            self.flow.pause_reading()

    def handle_events(self) -> None:
        """Act on what was parsed."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._begin()
        self._watch()

    def _begin(self) -> None:
        """Amend a request before the application sees it."""
        if self._pipelined >= MAX_PIPELINED:
            self.headers.append(CLOSE_HEADER)  # as if the client had: it is told so, and it is done
        authority, path = _parts(self.scope["raw_path"])
        if authority is not None:
            self.scope["raw_path"] = path
            self.scope["path"] = unquote(path.decode("ascii"))
            host = authority.rpartition(b"@")[2]
            self.headers[:] = [(name, host if name == b"host" else v) for name, v in self.headers]

    def on_response_complete(self) -> None:
        """Go on to the next request, once this one's body has come."""
        ahead = self.conn.their_state is h11.DONE and (self._ahead or self.conn.trailing_data[0])
        self._pipelined = self._pipelined + 1 if ahead else 0
        super().on_response_complete()
        self._parse()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._watch()

    def shutdown(self) -> None:
        """The server ends: only what is not yet answered, or read, is waited for."""
        if self.phase in (Phase.WORK, Phase.UNREAD):
            super().shutdown()
        else:
            self.socket.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was left."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that is offered is no fault: the request is answered as it is."""

    # --- how long it may take --------------------------------------------------------------------

    def _phase(self) -> Phase:
        if self.closing:
            return Phase.CLOSING
        if self.flow.write_paused:
            return Phase.UNREAD
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            return Phase.REST
        if theirs is h11.IDLE:
            return Phase.HEAD if self.cycle is None or self.conn.trailing_data[0] else Phase.IDLE
        return Phase.WORK

    def _watch(self) -> None:
        """Set the timer of the phase that has begun, if one has."""
        phase = self._phase()
        if phase is self.phase:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.phase, self.since, self._dropped = phase, time.monotonic(), 0
        seconds = {
            Phase.HEAD: HEAD_S,
            Phase.UNREAD: UNREAD_S,
            Phase.REST: REST_S,
            Phase.IDLE: self.timeout_keep_alive,
            Phase.CLOSING: REST_S,
        }.get(phase)
        self._timer = self.loop.call_later(seconds, self._late) if seconds else None

    def _late(self) -> None:
        if self.phase is Phase.HEAD and self.conn.trailing_data[0]:
            self._refuse(ApiError("request_timeout", "The request's head did not arrive in time."))
        else:
            self.socket.abort()

    def _make_room(self) -> bool:
        """Whether there is a place: at need, that of who has waited longest on its client."""
        others = [
            other
            for other in cast(set[Protocol], self.connections)
            if other is not self and other.config is self.config
        ]
        if len(others) < self.config.max_connections:
            return True
        waiting = [other for other in others if other.phase is not Phase.WORK]
        if not waiting:
            return False
        longest = min(waiting, key=lambda other: other.since)
        self.connections.discard(longest)
        longest.socket.abort()
        return True

    # --- how it ends -----------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer the error that is being handled."""
        error = sys.exception()
        if isinstance(error, Refused):
            self._refuse(error.error)
        elif isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(_headers_too_large())
        else:
            self._refuse(ApiError("bad_request", "This is not HTTP/1.1 as RFC 9112 defines it."))

    def _refuse(self, error: ApiError) -> None:
        """Answer, where no answer was begun, and close."""
        self.config.refused(error.code)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request_id = uuid.uuid4().hex
            response = error.response(request_id)
            response.headers.update({"X-Request-ID": request_id, **SECURITY_HEADERS})
            body = bytes(response.body)
            if self._of_inference():
                body = inference_error(response.headers, body)
            head = h11.Response(
                status_code=error.status,
                headers=[*self.server_state.default_headers, *response.raw_headers, CLOSE_HEADER],
                reason=http.HTTPStatus(error.status).phrase.encode(),
            )
            data = h11.Data(data=b"" if self.conn.head_only else body)
            for event in (head, data, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.close()

    def _of_inference(self) -> bool:
        root_path, target = self.config.inference_root, self.conn.target
        if root_path is None or target is None:
            return False
        path = _parts(target.partition(b"?")[0])[1]
        return is_of_inference(unquote(path.decode("ascii")), root_path)

    def close(self) -> None:
        """Close once the client has had its say, or its time.

        To close a socket on bytes that were not read resets the connection, and takes from the
        client the answer that it was sent.
        """
        if self.closing:
            return
        self.closing = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        theirs = self.conn.their_state
        if theirs in (h11.SEND_BODY, h11.ERROR) or self.conn.trailing_data[0]:
            self.flow.resume_reading()
            self.socket.write_eof()
        else:
            self.socket.close()
        self._watch()


class _Transport:
    """A connection's socket as uvicorn sees it: to close it is the protocol's."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def close(self) -> None:
        self._protocol.close()

    def is_closing(self) -> bool:
        return self._protocol.closing or self._protocol.socket.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol.socket, name)


def _parts(target: bytes) -> tuple[bytes | None, bytes]:
    """The authority and the path of a target without its query.

    The authority is there where a proxy is asked: RFC 9112, 3.2.2.
    """
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        return None, target
    authority, _, path = rest.partition(b"/")
    return authority, b"/" + path


def _headers_too_large() -> ApiError:
    return ApiError(
        "headers_too_large",
        f"A request may have {MAX_HEADERS} header lines and {MAX_HEAD_BYTES} bytes of them.",
    )


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on each address of a host; on all of both families for `::`.

    Args:
        host: an address or a name.
        port: 0 takes a free one.

    Raises:
        OSError: it cannot be listened on.
    """
    # A socket for each family: one for both would show IPv4 clients, proxies among them, by
    # another address than theirs.
    hosts = (host, "0.0.0.0") if host == "::" else (host,)  # noqa: S104  (as was asked)
    found = dict.fromkeys(
        (family, address)
        for one in hosts
        for family, *_, address in socket.getaddrinfo(
            one, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    )
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in found:
        where = (address[0], sockets[0].getsockname()[1] if sockets else address[1], *address[2:])
        try:
            sockets.append(socket.create_server(where, family=family, backlog=2048))
        except OSError as error:
            # A family that this machine does not speak.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                missing = error
                continue
            for one in sockets:
                one.close()
            raise
    if missing and not sockets:
        raise missing
    return sockets
