"""Who may use how much: API keys, request rate, body size, and places in the queue."""

import hashlib
import hmac
import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError


class BodyLimit:
    """ASGI middleware: refuses a body above the limit by its declared length, or as it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what `receive` gives."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise self._refusal()
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise self._refusal()
            return message

        await self.app(scope, counted, send)

    def _refusal(self) -> ApiError:
        # Closing is the only way not to read the rest.
        return ApiError(
            "payload_too_large",
            f"A request may have {self.max_bytes} bytes at most.",
            headers={"Connection": "close"},
        )


class ApiKeys:
    """The keys of which a request must carry one, where any is set.

    Routes ask for it (`app.routes.authorized`), so that no path rule can miss one: under a
    `root_path`, a path has more than one spelling.
    """

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._keys = [key.get_secret_value().encode() for key in keys]

    def check(self, headers: Headers) -> str | None:
        """Check `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Returns:
            The key's digest, to tell clients apart; None where no keys are set.

        Raises:
            ApiError: unauthorized.
        """
        if not self._keys:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        text = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = text.encode("latin-1")  # the bytes as they came: headers are decoded so
        # Every key is compared, each in constant time: no early exit.
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise ApiError(
                "unauthorized",
                "Send an API key as `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": 'Bearer realm="nsnet"'},
            )
        return hashlib.sha256(given).hexdigest()


class RateLimiter:
    """A token bucket per client: `per_minute` images, all of them at once if saved up."""

    MAX_CLIENTS = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, images: int) -> None:
        """Take tokens for `images`.

        Raises:
            ApiError: rate_limited, or too_many_files where no bucket could ever hold that many.
        """
        if not self.per_minute:
            return
        if images > self.per_minute:
            raise ApiError(
                "too_many_files", f"{self.per_minute} images a minute are allowed per client."
            )
        now = time.monotonic()
        tokens, then = self._buckets.pop(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - then) * self.per_minute / 60)
        wait = (images - tokens) * 60 / self.per_minute
        self._buckets[client] = (tokens if wait > 0 else tokens - images, now)
        if len(self._buckets) > self.MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if wait > 0:
            raise ApiError(
                "rate_limited",
                f"{self.per_minute} images a minute are allowed per client.",
                retry_after=max(1, math.ceil(wait)),
            )


class Admission:
    """Places for images, from their admission to their answer; all or nothing.

    Lives on the event loop: no lock is needed, and no `await` stands between check and taking.
    """

    WINDOW_S = 10.0

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self._answered: deque[float] = deque(maxlen=4096)

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold `images` places for the length of a `with` block.

        Raises:
            ApiError: too_many_files where that many never fit, queue_full where they do not now.
        """
        if images > self.places:
            raise ApiError("too_many_files", f"{self.places} images fit into the queue at most.")
        if self.taken + images > self.places:
            raise ApiError(
                "queue_full",
                "Every place in the queue is taken.",
                retry_after=self.retry_after(),
            )
        self.taken += images
        try:
            yield
        finally:
            self.taken -= images

    def answered(self) -> None:
        """Note that an image was answered, for the rate."""
        self._answered.append(time.monotonic())

    def retry_after(self) -> int:
        """Seconds: ceil(images in the queue / recent images per second), 1..30."""
        now = time.monotonic()
        recent = [t for t in self._answered if now - t <= self.WINDOW_S]
        if not recent:
            return 30 if self.taken > 1 else 1
        rate = len(recent) / max(now - recent[0], 0.1)
        return min(30, max(1, math.ceil(self.taken / rate)))
