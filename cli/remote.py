"""`nsnet detect --server`: images that a running server scores."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.environment import UsageError

if TYPE_CHECKING:  # torch does not come with it, but pictures do
    from model.images import Limits

_AT_ONCE: Final = 8  # images: as many as a server scores together
_EXPLAINED_AT_ONCE: Final = 2  # each counts as sixteen
_ATTEMPTS: Final = 5  # to reach the server at all
_WAIT_S: Final = 1.0  # between two, at least
_PATIENCE_S: Final = 120.0  # with a busy one: under a rate, several images wait for their turns
_TIMEOUT_S: Final = 60.0
_BUSY: Final = (429, 503)
_MOST_BYTES: Final = 1 << 30  # of one image: standard input is read into memory at once

T = TypeVar("T", bound="_Said")


class _Said(BaseModel):
    """What is read of a server's answers; a newer one's words, another verdict say, are taken."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Part(_Said):
    """What is passed on whole, with fields that are not read here."""

    model_config = ConfigDict(extra="allow")


class _Limits(_Said):
    max_upload_bytes: Annotated[int, Field(gt=0)]


class _Model(_Said):
    limits: _Limits


class _Problem(_Said):
    detail: str
    code: str


class _Provenance(_Part):
    declares: str


class _Box(_Part):
    left: int
    top: int
    right: int
    bottom: int


class _Window(_Part):
    box: _Box
    log_odds: float


class _Evidence(_Part):
    windows: list[_Window]


class _Detection(_Said):
    verdict: str
    score: Annotated[float, Field(ge=0, le=1)]
    looks: int
    warnings: list[str]
    provenance: _Provenance | None = None


class _Explained(_Detection):
    evidence: _Evidence | None = None


class Remote:
    """A running server; its answers are told as if the images were scored here.

    Args:
        url: of the server, with the path that it is under, if any.
        read: gives an image's bytes, no more than shows that they are too many.
        explain: whether evidence is asked for, without its heat-map.

    Raises:
        UsageError: `url` or the environment's key is none.
    """

    def __init__(self, url: str, read: "Callable[[str, Limits], bytes]", *, explain: bool) -> None:
        self._query = {"explain": "true", "heatmap": "none"} if explain else {}
        self._kind = _Explained if explain else _Detection
        self._at_once = _EXPLAINED_AT_ONCE if explain else _AT_ONCE
        self._read = read
        self._stopping = threading.Event()
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL:
            base = httpx.URL()
        if base.scheme not in ("http", "https") or not base.host:
            raise UsageError("--server takes an address as http://HOST:PORT")
        self._url = str(base.copy_with(userinfo=b""))  # as it is told: without a password
        self._key = _key()
        headers = {b"Authorization": f"Bearer {self._key}".encode()} if self._key else None
        self._http = httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Whoever waits for the server waits no longer."""
        self._stopping.set()
        self._http.close()

    def answers(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """What is said of each image, in their order; several are under way.

        Raises:
            UsageError: the server does not answer, or not to this key, or is no NS-Net server.
        """
        from model.data.ahead import ahead
        from model.images import ImageError, Limits

        limits = replace(Limits(), max_bytes=self._most_bytes())

        def score(name: str) -> dict[str, Any]:
            try:
                data = self._read(name, limits)
            except ImageError as error:
                return {"error": str(error), "code": error.code}
            if len(data) > limits.max_bytes:
                text = f"One image may have {limits.max_bytes} bytes at most."
                return {"error": text, "code": "payload_too_large"}
            return self._score(data)

        return ahead(score, names, self._at_once, _Threads(self._at_once, self._stopping))

    def _most_bytes(self) -> int:
        response = self._ask("GET", "model")
        if response.status_code == 200:
            return min(self._said(_Model, response).limits.max_upload_bytes, _MOST_BYTES)
        refusal = self._said(_Problem, response).detail
        raise UsageError(f"the server at {self._url} scores nothing now: {refusal}")

    def _score(self, data: bytes) -> dict[str, Any]:
        response = self._ask(
            "POST",
            "detect",
            params=self._query,
            content=data,
            headers={"Content-Type": "application/octet-stream"},
        )
        if response.status_code != 200:
            problem = self._said(_Problem, response)
            return {"error": problem.detail, "code": problem.code}
        answer = self._said(self._kind, response).model_dump()
        return answer | {"score": round(answer["score"], 6)}

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request, again where nobody answers or the server is busy; the last answer.

        Raises:
            UsageError: nobody answers, or the key is not taken.
        """
        end = time.monotonic() + _PATIENCE_S
        failures = 0
        while True:
            wait = _WAIT_S
            try:
                response = self._http.request(method, path, **request)
            except httpx.RequestError as error:
                failures += 1
                if failures == _ATTEMPTS:
                    reason = type(error).__name__
                    raise UsageError(f"no server answers at {self._url}: {reason}") from None
            else:
                asked = response.headers.get("Retry-After", "")
                wait = max(wait, float(asked) if asked.isdecimal() else 0)
                if response.status_code not in _BUSY or time.monotonic() + wait > end:
                    break
            if self._stopping.wait(wait):
                raise UsageError("stopped")  # to nobody: the command has ended already
        if response.status_code == 401:
            what = "another" if self._key else "an"
            raise UsageError(
                f"the server at {self._url} asks for {what} API key: set NSNET_API_KEYS to it"
            )
        return response

    def _said(self, kind: type[T], response: httpx.Response) -> T:
        """What an answer holds.

        Raises:
            UsageError: it is none of NS-Net's.
        """
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            status = response.status_code
            text = f"what answers at {self._url} is no NS-Net server: status {status}"
            raise UsageError(text) from None


class _Threads(ThreadPoolExecutor):
    """Threads that nobody waits for once they are left: what is queued is never begun.

    Args:
        threads: how many.
        stopping: set when they are left.
    """

    def __init__(self, threads: int, stopping: threading.Event) -> None:
        super().__init__(threads)
        self._stopping = stopping

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self.shutdown(wait=False, cancel_futures=True)


def _key() -> str | None:
    from app.intake.keyring import KeysError
    from app.settings import own_api_key

    try:
        return own_api_key()
    except KeysError as error:
        raise UsageError(f"NSNET_API_KEYS: {error}") from None
