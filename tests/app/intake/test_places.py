import pytest

from app.errors import ApiError
from app.intake.places import Places
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
    held.taken = taken
    for _ in range(answered):
        held.answered()
    clock.now += seconds
    assert held.retry_after() == expected
