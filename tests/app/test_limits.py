import pytest

from app import limits
from app.errors import ApiError
from app.limits import Admission, RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def test_admission_is_all_or_nothing_and_given_back() -> None:
    admission = Admission(4)
    with admission.admit(3):
        with pytest.raises(ApiError) as caught, admission.admit(2):
            pass
        assert caught.value.code == "queue_full"
        assert admission.taken == 3
        with admission.admit(1):
            assert admission.taken == 4
    assert admission.taken == 0
    with pytest.raises(ZeroDivisionError), admission.admit(4):
        raise ZeroDivisionError
    assert admission.taken == 0


def test_what_never_fits_is_not_told_to_come_again() -> None:
    with pytest.raises(ApiError) as caught, Admission(4).admit(5):
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
    admission = Admission(64)
    admission.taken = taken
    for _ in range(answered):
        admission.answered()
    clock.now += seconds
    assert admission.retry_after() == expected


def test_rate_refills_per_client(clock: Clock) -> None:
    rates = RateLimiter(60)
    rates.take("a", 60)
    with pytest.raises(ApiError) as caught:
        rates.take("a", 5)
    assert caught.value.code == "rate_limited"
    assert caught.value.headers["Retry-After"] == "5"
    rates.take("b", 60)
    clock.now += 5
    rates.take("a", 5)
    with pytest.raises(ApiError) as caught:
        rates.take("a", 61)
    assert caught.value.code == "too_many_files"


def test_the_table_of_clients_is_bounded(clock: Clock) -> None:
    rates = RateLimiter(1)
    for index in range(RateLimiter.MAX_CLIENTS + 10):
        rates.take(str(index), 1)
    assert len(rates._buckets) == RateLimiter.MAX_CLIENTS


def test_no_limit_keeps_nothing() -> None:
    rates = RateLimiter(0)
    rates.take("a", 1000)
    assert not rates._buckets
