"""Who may ask, and how often: API keys, and a rate for each client."""

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers

from app.errors import ApiError


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
