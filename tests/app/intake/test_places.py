import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.errors import ApiError
from app.intake.places import PACE, PATIENCE_S, Places
from tests.app.intake.conftest import Clock


def test_admission_is_all_or_nothing_and_given_back() -> None:
    held = Places(4)
    with held.hold(3):
        with pytest.raises(ApiError) as caught, held.hold(2):
            pass
        assert caught.value.code == "queue_full"
        assert held.taken == 3
        with held.hold(1):
            assert held.taken == 4
    assert held.taken == 0
    with pytest.raises(ZeroDivisionError), held.hold(4):
        raise ZeroDivisionError
    assert held.taken == 0


def test_what_never_fits_is_not_told_to_come_again() -> None:
    with pytest.raises(ApiError) as caught, Places(4).hold(5):
        pass
    assert caught.value.code == "too_many_files"
    assert "Retry-After" not in caught.value.headers


@pytest.mark.parametrize(
    ("taken", "answered", "seconds", "expected"),
    [(20, 10, 2.0, 4), (1, 10, 1.0, 1), (64, 1, 1.0, 30), (8, 0, 0.0, 30)],
)
def test_retry_after_is_queue_over_recent_rate(
    clock: Clock, taken: int, answered: int, seconds: float, expected: int
) -> None:
    held = Places(64)
    with held.hold(taken):
        for _ in range(answered):
            held.answered()
        clock.now += seconds
        assert held.retry_after() == expected


class Sender:
    """A client whose body comes as the test has it."""

    def __init__(self, places: Places, images: int = 1) -> None:
        self.sent: asyncio.Queue[bytes] = asyncio.Queue()
        self.outcome = asyncio.create_task(self._upload(places, images))

    async def _upload(self, places: Places, images: int) -> str:
        request = Request({"type": "http"}, self._receive)
        try:
            with places.hold(images) as held:
                async with held.arriving(request) as arriving:
                    await arriving.body()
        except ApiError as error:
            return error.code
        return "arrived"

    async def _receive(self) -> Message:
        body = await self.sent.get()
        return {"type": "http.request", "body": body, "more_body": bool(body)}

    async def send(self, data: bytes) -> None:
        self.sent.put_nowait(data)
        await settle()


async def settle() -> None:
    """Let whoever can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_newcomer_has_the_place_of_the_upload_that_waited_longest(clock: Clock) -> None:
    async def scene() -> None:
        places = Places(3)
        silent, *others = [Sender(places) for _ in range(3)]
        await settle()
        clock.now += 1
        for other in others:
            await other.send(bytes(PACE))
        clock.now += PATIENCE_S - 0.5
        with places.hold(1):  # at once, with no turn of the loop
            assert places.taken == 3
            assert await silent.outcome == "request_timeout"
            with pytest.raises(ApiError), places.hold(1):  # nobody else is late
                pass
            for other in others:
                await other.send(b"")
                assert await other.outcome == "arrived"
            assert places.taken == 1

    asyncio.run(scene())


def test_an_upload_below_the_pace_gives_way_though_it_drips(clock: Clock) -> None:
    async def scene() -> None:
        places = Places(2)
        slow, fast = Sender(places), Sender(places)
        await settle()
        for _ in range(8):
            clock.now += 1
            await slow.send(bytes(PACE // 2))
            await fast.send(bytes(PACE))
        with places.hold(1):
            assert await slow.outcome == "request_timeout"
            with pytest.raises(ApiError), places.hold(1):
                pass
        await fast.send(b"")
        assert await fast.outcome == "arrived"

    asyncio.run(scene())


def test_nobody_gives_way_for_who_does_not_fit_even_so_or_has_room(clock: Clock) -> None:
    async def scene() -> None:
        places = Places(4)
        silent = Sender(places, 2)
        await settle()
        clock.now += 100
        with places.hold(1):
            with pytest.raises(ApiError) as caught, places.hold(4):
                pass
            assert caught.value.code == "queue_full"
            with places.hold(1):
                assert not silent.outcome.done()
            with places.hold(3):
                assert await silent.outcome == "request_timeout"

    asyncio.run(scene())


def test_an_image_that_is_here_never_gives_way(clock: Clock) -> None:
    async def scene() -> None:
        places = Places(1)
        body = asyncio.Queue[Message]()
        body.put_nowait({"type": "http.request", "body": b"x"})
        with places.hold(1) as held:
            async with held.arriving(Request({"type": "http"}, body.get)) as arriving:
                await arriving.body()
            clock.now += 100
            with pytest.raises(ApiError), places.hold(1):
                pass

    asyncio.run(scene())


def test_a_body_that_ends_as_its_place_is_taken_has_none(clock: Clock) -> None:
    """Else two would work in one place."""

    async def scene() -> None:
        places = Places(1)
        silent = Sender(places)
        await settle()
        clock.now += 100
        silent.sent.put_nowait(b"")  # its reader has not had its turn yet
        with places.hold(1):
            assert await silent.outcome == "request_timeout"

    asyncio.run(scene())


def test_what_is_many_images_work_takes_as_many_places_and_half_of_all_at_most() -> None:
    places = Places(10)
    with places.hold(1) as first, places.hold(1) as second, places.hold(1):
        first.widen(5)
        assert places.taken == 7
        with pytest.raises(ApiError, match="Every place"):
            second.widen(2)
        assert places.taken == 7
    assert places.taken == 0


def test_one_of_more_than_half_is_taken_where_there_is_no_other() -> None:
    places = Places(4)
    with places.hold(1) as only:
        only.widen(16)
        assert places.taken == 4
    with places.hold(1) as one, places.hold(1), pytest.raises(ApiError, match="Every place"):
        one.widen(16)


def test_a_place_is_not_widened_by_no_more_than_it_has() -> None:
    places = Places(4)
    with places.hold(2) as held:
        held.widen(1)
        assert (places.taken, held.heavy) == (2, False)
