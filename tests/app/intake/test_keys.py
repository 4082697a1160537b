import pytest

from app.errors import ApiError
from app.intake.keys import RateLimiter
from tests.app.intake.conftest import Clock


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
