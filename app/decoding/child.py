"""`python -m app.decoding.child SOCKET [ANCHORS]`: decodes images, for `pool.Decoders`.

Each comes as a message and a file in memory. The file's bytes are replaced by the pixels, and a
message says what they are. Others follow with what the file declares of its origin, if that is
asked for: whatever happens meanwhile, the pixels are safe. The last one has the key `last`.

Loads what decodes, and nothing else: no torch, no settings, no keys. Neither pydantic, and what
checks signatures for the first file that has one.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from app.provenance.declarations import Declarations
from model.hardware import memory, return_memory
from model.images import ImageError, Limits, decode

READY = b"ready"
MESSAGE_BYTES = 65536  # a report of the longest lists and values, in letters of four bytes, is less
PROVENANCE_CPU_S = 2.0

_MIB = 1 << 20
# What `decode` takes at its peak, in any format and mode, as `benchmarks/decoding.py` measures it.
_BYTES_PER_PIXEL = 17
_COPIES = 3  # of a file: itself, without its metadata, and what its metadata unpack to
_SPARE_BYTES = 256 * _MIB  # address space, for stacks of decoders' threads and tables
# Whatever leaks does so into a process that ends before it matters.
_SERVED = 2_000
_GROWN_BYTES = 96 * _MIB
_LARGE_BYTES = 4 * _MIB  # of pixels: what was freed is given back at once


@dataclass(frozen=True, slots=True)
class Job:
    """What goes with a file.

    Attributes:
        limits: what it may have at most.
        cpu_s: CPU seconds that decoding it may cost, of all threads together.
        provenance: whether to say what it declares of its origin.
    """

    limits: Limits
    cpu_s: float
    provenance: bool = False

    def encode(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """As it is received."""
        fields = json.loads(message)
        return cls(Limits(**fields.pop("limits")), **fields)


def serve(connection: socket.socket, declarations: Declarations) -> None:
    """Decode until the other end closes, or this process is worn out."""
    virtual, resident = memory()
    connection.send(READY)
    left = _SERVED
    while left:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        if not message:
            return
        [file] = files
        job = Job.decode(message)
        _limit(job, virtual)
        answer, data = _answer(file, job.limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        is_large = os.fstat(file).st_size > _LARGE_BYTES or "expensive" in answer
        os.close(file)
        if job.provenance and "facts" in answer:
            _send(connection, answer)
            signal.setitimer(signal.ITIMER_PROF, PROVENANCE_CPU_S)
            answer = _declare(connection, declarations, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
        del data
        if is_large:
            return_memory()
        left -= 1
        if memory()[1] > resident + _GROWN_BYTES:
            left = 0
        _send(connection, answer | {"last": not left})


def _send(connection: socket.socket, answer: dict[str, Any]) -> None:
    connection.send(json.dumps(answer, ensure_ascii=False).encode())


def _declare(connection: socket.socket, declarations: Declarations, data: bytes) -> dict[str, Any]:
    """Send each report as soon as it is there; whether that was all, or why it was not."""
    try:
        for report in declarations.reports(data):
            _send(connection, {"provenance": report})
    except MemoryError:
        return {}
    except Exception as error:  # noqa: BLE001  (a bug, which costs no verdict)
        return {"provenance_bug": type(error).__name__}
    return {"provenance_read": True}


@contextlib.contextmanager
def _nothing_opened() -> Iterator[None]:
    """No file and no connection can be opened: a signature is checked by what is at hand alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _answer(file: int, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Replace a file's bytes by its pixels; what they are, or why there are none, and the bytes."""
    try:
        data = os.pread(file, os.fstat(file).st_size, 0)
        os.ftruncate(file, 0)  # its memory is the pixels'
        picture = decode(data, limits)
        os.lseek(file, 0, os.SEEK_SET)
        rest = picture.pixels.data.cast("B")
        while rest:
            rest = rest[os.write(file, rest) :]
        return {"facts": asdict(picture.facts)}, data
    except ImageError as error:
        return {"error": [error.code, str(error)]}, b""
    except MemoryError:
        return {"expensive": True}, b""
    except Exception as error:  # noqa: BLE001  (a bug: told by its name, its text may quote the file)
        return {"bug": type(error).__name__}, b""


def _limit(job: Job, virtual: int) -> None:
    """Bound what the next image costs: in memory by a `MemoryError`, in time by a signal."""
    most = _BYTES_PER_PIXEL * job.limits.max_pixels + _COPIES * job.limits.max_bytes
    _lower(resource.RLIMIT_AS, virtual + most + _SPARE_BYTES)
    # Not RLIMIT_CPU, which counts whole seconds since the process began.
    signal.setitimer(signal.ITIMER_PROF, job.cpu_s)


def _lower(kind: int, limit: int) -> None:
    """Set the soft limit, within the hard one."""
    hard = resource.getrlimit(kind)[1]
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (soft, hard))


def main() -> None:
    """Serve the socket that was inherited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a keyboard: the pool ends this, in its time
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would be an image on a disk
    with contextlib.suppress(OSError):  # where memory ends, this process goes before the service
        Path("/proc/self/oom_score_adj").write_text("1000")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there what they think of a file
        os.dup2(nowhere, stream)
    socket_file, *anchors_file = map(int, sys.argv[1:])
    anchors = b""
    for file in anchors_file:
        anchors = os.pread(file, os.fstat(file).st_size, 0)
        os.close(file)
    with socket.socket(fileno=socket_file) as connection:
        serve(connection, Declarations(anchors.decode(), _nothing_opened))


if __name__ == "__main__":
    main()
