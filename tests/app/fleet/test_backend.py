"""An ingress's backend, before replicas that fail in every way."""

import asyncio
import contextvars
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectStoreFullError, RayTaskError
from ray.serve.exceptions import BackPressureError

from app.backend import Outcome, Result
from app.errors import ApiError
from app.fleet.backend import FleetBackend
from app.intake.uploads import Upload
from app.metrics import Metrics
from app.results import Passing
from app.schemas import TimingsOut
from model.detector import Score
from model.images import Facts
from tests.fakes import FakeDetector
from tests.server.conftest import eventually

ABOUT = FakeDetector.about
MODEL = ABOUT.identity
RESULT = Result(
    Facts("JPEG", 80, 70, ()),
    None,
    Score(0.5, 0.0, 1),
    TimingsOut(decode=1, patches=2, queue=3, inference=4),
)


class Response:
    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer
        self.cancelled = False

    def __await__(self) -> Any:
        async def given() -> Any:
            answer = self._answer()
            return await answer if asyncio.isfuture(answer) else answer

        return given().__await__()

    def cancel(self) -> None:
        self.cancelled = True


REQUEST = contextvars.ContextVar("REQUEST", default="none")


class Replicas:
    """A handle; what it is asked is answered by the next of these."""

    def __init__(self, *answers: Callable[[], Any]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []
        self.responses: list[Response] = []
        self.requests: list[str] = []

    def remote(self, *given: Any) -> Response:
        self.asked.append(given)
        self.requests.append(REQUEST.get())
        self.responses.append(Response(self._answers.pop(0)))
        return self.responses[-1]


def gives(value: Any) -> Callable[[], Any]:
    return lambda: value


def fails(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def backend(decoding: Any, scoring: Any, metrics: Metrics | None = None) -> FleetBackend:
    return FleetBackend(ABOUT, decoding, scoring, metrics or Metrics())


def upload() -> Upload:
    one = Upload()
    one.add(b"a fi")
    one.add(b"le")
    return one


def made(one: FleetBackend) -> Outcome:
    return asyncio.run(one.make(upload(), "id", explain=True))


def test_the_picture_goes_from_decoder_to_scorer_and_stages_are_counted_here() -> None:
    decoding, scoring = Replicas(gives(None)), Replicas(gives((MODEL, Passing(RESULT))))
    metrics = Metrics()
    assert made(backend(decoding, scoring, metrics)) == Passing(RESULT)
    assert decoding.asked == [(b"a file", ABOUT.min_side, "id")]
    assert scoring.asked == [(decoding.responses[0], "id", True)]
    text = metrics.render().decode()
    spent = {"decode": 0.001, "patches": 0.002, "queue": 0.003, "forward": 0.004}
    for stage, seconds in spent.items():
        assert f'nsnet_stage_duration_seconds_sum{{stage="{stage}"}} {seconds}' in text


def test_replicas_are_asked_on_behalf_of_no_request() -> None:
    """Or Ray would cancel, with the first client who leaves, what others wait for too."""
    decoding, scoring = Replicas(gives(None)), Replicas(gives((MODEL, RESULT)))
    token = REQUEST.set("a client's")
    try:
        assert made(backend(decoding, scoring)) == RESULT
    finally:
        REQUEST.reset(token)
    assert [*decoding.requests, *scoring.requests] == ["none", "none"]


def test_what_a_replica_had_is_asked_of_another() -> None:
    scoring = Replicas(fails(ActorDiedError()), gives((MODEL, RESULT)))
    assert made(backend(Replicas(gives(None), gives(None)), scoring)) == RESULT


@pytest.mark.parametrize("error", [ActorDiedError(), BackPressureError(1, 1)])
def test_where_none_can_take_it_the_client_may_come_again(error: Exception) -> None:
    scoring = Replicas(fails(error), fails(error))
    refused = made(backend(Replicas(gives(None), gives(None)), scoring))
    assert isinstance(refused, ApiError)
    assert (refused.code, refused.headers["Retry-After"]) == ("overloaded", "5")


@pytest.mark.parametrize("cause", [ObjectStoreFullError(), MemoryError()])
def test_no_memory_around_our_code_is_no_bug_of_it(cause: Exception) -> None:
    error = RayTaskError("score", "", cause)  # type: ignore[no-untyped-call]
    scoring = Replicas(fails(error), gives((MODEL, RESULT)))
    assert made(backend(Replicas(gives(None), gives(None)), scoring)) == RESULT


def test_a_bug_is_no_reason_to_ask_again(caplog: pytest.LogCaptureFixture) -> None:
    error = RayTaskError("score", "a traceback with hidden text", ValueError("hidden"))  # type: ignore[no-untyped-call]
    scoring = Replicas(fails(error))
    refused = made(backend(Replicas(gives(None)), scoring))
    assert isinstance(refused, ApiError)
    assert refused.code == "internal_error"
    assert "unexpected RayTaskError, request id" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    "other", [{"sha256": "0" * 64}, {"tower_sha256": "1" * 64}, {"canvases": "all"}]
)
def test_no_verdict_is_taken_by_another_models_cuts(other: dict[str, Any]) -> None:
    model = dataclasses.replace(ABOUT, **other).identity
    refused = made(backend(Replicas(gives(None)), Replicas(gives((model, RESULT)))))
    assert isinstance(refused, ApiError)
    assert refused.code == "overloaded"


def test_who_leaves_takes_the_work_along() -> None:
    async def run() -> None:
        waiting = asyncio.get_running_loop().create_future()
        decoding, scoring = Replicas(gives(None)), Replicas(gives(waiting))
        task = asyncio.create_task(backend(decoding, scoring).make(upload(), "id", explain=False))
        await asyncio.to_thread(eventually, lambda: scoring.asked)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert [one.cancelled for one in (*decoding.responses, *scoring.responses)] == [True, True]

    asyncio.run(run())
