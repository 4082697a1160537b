"""`python -m tests.server.serve_calm`: the real server process; every image is mid-grey to it."""

import sys

import numpy as np
from numpy.typing import NDArray

from app.local import local
from app.main import serve
from app.settings import load_settings
from model.detector import Look
from tests.fakes import FakeDetector, look_of


class Calm(FakeDetector):
    """No image puts it into a mood."""

    def look(self, pixels: NDArray[np.uint8], *, explain: bool = False) -> Look:
        return look_of(128)


if __name__ == "__main__":
    sys.exit(serve(load_settings(), local(lambda _: Calm())))
