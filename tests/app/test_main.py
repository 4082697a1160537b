import subprocess
import sys

import pytest


@pytest.mark.process
def test_building_the_application_touches_neither_torch_nor_a_thread() -> None:
    """torch took seconds before a wrong setting was told, or a probe answered.

    Servers that fork after loading re-initialised CUDA in the child, and failed, elsewhere.
    """
    code = """
import sys, threading
from app.local import local
from app.main import create_app
from app.settings import Settings

def load(settings):
    raise SystemExit("loaded before the server started")

create_app(Settings(), local(load))
assert not {"torch", "sklearn"} & sys.modules.keys()
assert threading.active_count() == 1, threading.enumerate()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
