import subprocess
import sys


def test_building_the_application_touches_neither_the_device_nor_a_thread() -> None:
    """Servers that fork after loading re-initialised CUDA in the child, and failed, elsewhere."""
    code = """
import threading
from app.main import create_app
from app.settings import Settings

def load(settings):
    raise SystemExit("loaded before the server started")

create_app(Settings(), load)
import torch
assert not torch.cuda.is_initialized()
assert threading.active_count() == 1, threading.enumerate()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
