"""Who may ask, and how often: API keys, and a rate for each client."""

import hmac
import logging
import math
import time
from collections.abc import Sequence
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from cachetools import LRUCache
from starlette.datastructures import Headers

from app.errors import ApiError
from app.intake.keyring import Key, KeysError, digest_of, read_keys
from app.settings import SettingsError

log = logging.getLogger(__name__)

MAX_CLIENTS = 10_000
"""Clients of whom anything is remembered: who has not come for longest is forgotten first."""


def network_of(address: str) -> str:
    """What belongs to one client: an IPv4 address, or the /64 around an IPv6 one."""
    try:
        ip = IPv6Address(address)
    except ValueError:
        return address
    return str(ip.ipv4_mapped or IPv6Network((ip, 64), strict=False))


class Buckets:
    """A token bucket per client: `per_minute` tokens, all of them at once if saved up."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(MAX_CLIENTS)

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, client: str, tokens: int) -> int:
        """Whole seconds until `client` has so many tokens; 0 where it has them."""
        return max(0, math.ceil((tokens - self._filled(client)) * 60 / self.per_minute))

    def take(self, client: str, tokens: int) -> int:
        """Take tokens where there are as many; returns what `wait` does."""
        wait = self.wait(client, tokens)
        left = self._filled(client)
        self._buckets[client] = (left if wait else left - tokens, time.monotonic())
        return wait

    def _filled(self, client: str) -> float:
        now = time.monotonic()
        tokens, then = self._buckets.get(client, (float(self.per_minute), now))
        return min(self.per_minute, tokens + (now - then) * self.per_minute / 60)


class ApiKeys:
    """The keys of which a request must carry one, where any is set.

    Routes ask for it (`app.routes.authorized`), so that no path rule can miss one: under a
    `root_path`, a path has more than one spelling.

    Args:
        keys: that stay.
        file: of more keys; read again once it has changed. Where it is broken then, the keys that
            it held before stay.

    Raises:
        SettingsError: the file cannot be read.
    """

    FAILURES_PER_MINUTE = 10
    LOOK_AGAIN_S = 1.0

    def __init__(self, keys: Sequence[Key], file: Path | None = None) -> None:
        self._fixed = tuple(keys)
        self._keys = self._fixed
        self._file = file
        self._failures = Buckets(self.FAILURES_PER_MINUTE)
        self._seen: LRUCache[tuple[str, str], None] = LRUCache(MAX_CLIENTS)
        self._looked = time.monotonic()
        if file is not None:
            self._stamp = _stamp(file)
            try:
                self._keys += read_keys(file)
            except KeysError as error:
                raise SettingsError(f"NSNET_API_KEYS_FILE: {error}") from None

    def check(self, headers: Headers, address: str) -> str | None:
        """Check `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        An address that sends too many wrong keys is answered no further one. Who had a right key
        there before goes on: behind a proxy, many share an address.

        Args:
            headers: of the request.
            address: where it comes from.

        Returns:
            The key's name; None where no keys are set.

        Raises:
            ApiError: unauthorized, rate_limited.
        """
        self._read_again()
        if not self._keys:
            return None
        given = _given(headers)
        if not given:
            raise _unauthorized("Send an API key as `Authorization: Bearer KEY`.")
        name = self._name_of(given)
        wait = self._failures.wait(address, 1)
        if name is not None and (not wait or (address, name) in self._seen):
            self._seen[address, name] = None
            return name
        if wait:
            raise ApiError(
                "rate_limited", "Too many wrong API keys came from this address.", retry_after=wait
            )
        self._failures.take(address, 1)
        raise _unauthorized(
            "The API key is not known; send it without its name, as `Authorization: Bearer KEY`."
        )

    def _name_of(self, given: bytes) -> str | None:
        digest = digest_of(given)
        # Every key is compared, each in constant time: no early exit.
        names = [key.name for key in self._keys if hmac.compare_digest(digest, key.digest)]
        return names[0] if names else None

    def _read_again(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < self.LOOK_AGAIN_S:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = read_keys(self._file)
        except KeysError as error:
            log.error("NSNET_API_KEYS_FILE: %s; the keys before stay", error)  # noqa: TRY400
            return
        self._keys = (*self._fixed, *keys)
        log.info("NSNET_API_KEYS_FILE has changed: %d keys", len(keys))


def _given(headers: Headers) -> bytes:
    """The key as it came; empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    text = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return text.encode("latin-1")  # headers are decoded so


def _unauthorized(detail: str) -> ApiError:
    return ApiError("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="nsnet"'})


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What is another once the file has changed, or a link leads to another one."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


class RateLimiter:
    """So many images a minute for each client.

    Args:
        per_minute: images; 0: no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets = Buckets(per_minute)

    def take(self, client: str, images: int) -> None:
        """Take tokens for `images`.

        Raises:
            ApiError: rate_limited, or too_many_files where no bucket could ever hold that many.
        """
        if not self.per_minute:
            return
        detail = f"{self.per_minute} images a minute are allowed per client."
        if images > self.per_minute:
            raise ApiError("too_many_files", detail)
        if wait := self._buckets.take(client, images):
            raise ApiError("rate_limited", detail, retry_after=wait)
