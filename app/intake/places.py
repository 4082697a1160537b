"""Places for images: how many are admitted at once."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import ApiError


class Places:
    """Places for images, from their admission to their answer; all or nothing.

    Lives on the event loop: no lock is needed, and no `await` stands between check and taking.

    Args:
        size: images admitted at once.
    """

    WINDOW_S = 10.0

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._answered: deque[float] = deque(maxlen=4096)

    @contextmanager
    def hold(self, images: int) -> Iterator[None]:
        """Hold `images` places for the length of a `with` block.

        Raises:
            ApiError: too_many_files where that many never fit, queue_full where they do not now.
        """
        if images > self.size:
            raise ApiError("too_many_files", f"{self.size} images fit into the queue at most.")
        if self.taken + images > self.size:
            raise ApiError(
                "queue_full", "Every place in the queue is taken.", retry_after=self.retry_after()
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
