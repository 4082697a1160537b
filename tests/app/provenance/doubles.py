"""A library for Content Credentials that a hostile file gets the better of."""

from pathlib import Path

_LIBRARY = """
import os, signal, socket, time


class C2paError(Exception):
    pass


class Context:
    @classmethod
    def from_dict(cls, _):
        return cls()


class Reader:
    def __init__(self, *_, **__):
        {deed}
"""
KILLS_ITSELF = "os.kill(os.getpid(), signal.SIGSEGV)"
IS_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
COMPUTES_FOR_EVER = "while True: pass"
SLEEPS_FOR_EVER = "time.sleep(1000)"
HOARDS = "b'x' * (1 << 40)"
FAILS = "raise LookupError('a text that may quote the file')"
OPENS = "open('/dev/null')"
CONNECTS = "socket.create_connection(('127.0.0.1', 9))"


def write_library(folder: Path, deed: str) -> Path:
    """Write it where it is found before the true one, if the folder comes first; its file.

    Args:
        folder: for `monkeypatch.syspath_prepend`.
        deed: what it does to read a file.
    """
    library = folder / "c2pa.py"
    library.write_text(_LIBRARY.format(deed=deed))
    return library
