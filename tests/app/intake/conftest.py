import pytest

from app.intake import keys, places


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as the test has it."""
    clock = Clock()
    for module in (keys, places):
        monkeypatch.setattr(module, "time", clock)
    return clock
