"""Places for images: how many are admitted at once."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import Request
from starlette.types import Message

from app.errors import ApiError

PACE = 8192
"""Bytes a second: the slowest upload that keeps its place though somebody else needs it."""
PATIENCE_S = 2.0
"""How far an upload may fall behind that pace; also how long it may pause, however fast it was."""


class Held:
    """The places of one request.

    Args:
        places: of all.
        images: how many.
    """

    def __init__(self, places: "Places", images: int) -> None:
        self._places = places
        self.images = images
        self.heavy = False
        self._due = math.inf
        self._arrival: asyncio.Timeout | None = None

    @property
    def late(self) -> float:
        """Seconds by which its upload is behind; negative while it is not, or nothing arrives."""
        return time.monotonic() - self._due

    @asynccontextmanager
    async def arriving(self, request: Request) -> AsyncIterator[Request]:
        """Read the body of `request` from what this gives: meanwhile, its places may be taken.

        Raises:
            ApiError: request_timeout, where they were.
        """
        self._due = time.monotonic() + PATIENCE_S

        async def paced() -> Message:
            message = await request.receive()
            due = self._due + len(message.get("body", b"")) / PACE
            self._due = min(due, time.monotonic() + PATIENCE_S)
            return message

        try:
            async with asyncio.timeout(None) as self._arrival:
                yield Request(request.scope, paced)
        except TimeoutError:
            raise _too_slow() from None
        finally:
            self._due = math.inf
        if not self.images:  # its last bytes came with the newcomer's
            raise _too_slow()

    def widen(self, images: int) -> None:
        """Hold as many places as one image of many images' work takes, or all there are.

        Such images have half of the places together, or one of them as many as it takes.

        Raises:
            ApiError: queue_full.
        """
        if images > self.images:
            self._places.widen(self, images)

    def give_way(self) -> None:
        """Have the places no longer: they are somebody else's from now on."""
        assert self._arrival is not None  # noqa: S101  (nothing else is ever late)
        self.images, self._due = 0, math.inf
        self._arrival.reschedule(0)  # which is now


class Places:
    """Places for images, from their admission to their answer; all or nothing.

    Lives on the event loop: no lock is needed, and no `await` stands between check and taking.

    Args:
        size: images admitted at once.
    """

    WINDOW_S = 10.0

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: set[Held] = set()
        self._answered: deque[float] = deque(maxlen=4096)

    @property
    def taken(self) -> int:
        """Images that are admitted and not yet answered."""
        return sum(held.images for held in self._held)

    @contextmanager
    def hold(self, images: int) -> Iterator[Held]:
        """Hold `images` places for the length of a `with` block.

        Where there are too few, uploads that are late give way, the latest first. An image that is
        here never does.

        Raises:
            ApiError: too_many_files where that many never fit, queue_full where they do not now.
        """
        if images > self.size:
            raise ApiError("too_many_files", f"{self.size} images fit into the queue at most.")
        self._make_room(images)
        held = Held(self, images)
        self._held.add(held)
        try:
            yield held
        finally:
            self._held.discard(held)

    def widen(self, held: Held, images: int) -> None:
        """See `Held.widen`."""
        images = min(images, self.size)
        others = sum(other.images for other in self._held if other.heavy)
        if others and others + images > self.size // 2:
            raise self._full()
        self._make_room(images - held.images)
        held.images, held.heavy = images, True

    def _full(self) -> ApiError:
        return ApiError(
            "queue_full", "Every place in the queue is taken.", retry_after=self.retry_after()
        )

    def _make_room(self, images: int) -> None:
        missing = self.taken + images - self.size
        if missing <= 0:
            return
        late = [held for held in self._held if held.late > 0]
        if sum(held.images for held in late) < missing:
            raise self._full()
        for held in sorted(late, key=lambda held: held.late, reverse=True):
            if missing > 0:
                missing -= held.images
                held.give_way()

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


def _too_slow() -> ApiError:
    return ApiError(
        "request_timeout",
        "The body came too slowly while others waited for its place.",
        headers={"Connection": "close"},  # or the rest would have to be read
    )
