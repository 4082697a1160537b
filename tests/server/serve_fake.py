"""`python -m tests.server.serve_fake`: the real server process around a fake detector."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from app.local import local
from app.main import serve
from app.scoring import ServedDetector
from app.settings import Settings, SettingsError, load_settings
from model.detector import Look
from tests.fakes import FakeDetector, load_fake


def compute() -> NoReturn:
    """Work without end, in native code: the interpreter's end aborts the process in it."""
    one = torch.ones(400, 400)
    while True:
        one @ one


class Endless(FakeDetector):
    """Its forward never ends."""

    def submit(self, looks: Sequence[Look]) -> NoReturn:
        self.entered.set()
        compute()


def load(settings: Settings) -> ServedDetector:
    """As the environment asks."""
    match os.environ.get("FAKE_NATIVE"):
        case "load":
            compute()
        case "forward":
            return Endless()
    return load_fake(settings)


if __name__ == "__main__":
    try:
        sys.exit(serve(load_settings(), local(load)))
    except SettingsError as error:
        sys.exit(f"nsnet: {error}")
