"""A pool of processes that decode images: one that dies, hangs or costs too much is replaced.

Whatever a file does to its decoder, its request is answered once and nobody else notices.
"""

import contextlib
import fcntl
import json
import logging
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from app.decoding.child import MESSAGE_BYTES, READY, Job
from app.provenance.declarations import Declarations
from app.provenance.report import unread
from app.schemas import ProvenanceOut
from model.images import Facts, ImageError, Limits, Picture, decode

log = logging.getLogger(__name__)

PROVENANCE_WALL_S = 6.0
"""Seconds that each step of reading what a file declares may take."""

_BOOT_S = 60.0  # it takes 0.2 s of a core that has nothing else to do
# Nothing else in the environment is a decoder's business: least of all the keys.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONDONTWRITEBYTECODE")


class Opened(NamedTuple):
    """What was in a file.

    Attributes:
        picture: its pixels, and what they are.
        provenance: what it declares of its origin; None: nobody asked.
        is_read: whether that was read to its end: where it was not, another time may tell more.
        took_s: seconds from the file to this.
    """

    picture: Picture
    provenance: ProvenanceOut | None
    is_read: bool = True
    took_s: float = 0.0


class DecodersError(Exception):
    """No decoder, or no memory for one, is to be had: no fault of the image's."""


class Decoders:
    """Processes that decode; see `child`.

    Where files in memory cannot be passed on (it is Linux's way), images are decoded in the calling
    thread, and nothing stops them there.

    Args:
        count: images that are decoded at once; one process more is kept in reserve.
        cpu_s: CPU seconds that an image may cost.
        wall_s: seconds that it may take.
        replaced: told why a process is replaced: `crashed`, `too_expensive`, `worn`, or `killed` by
            somebody else, as by a system that is out of memory.
        trust_anchors: PEM of authorities whose C2PA signers are trusted; empty: there are none.
    """

    ISOLATED = sys.platform == "linux"

    def __init__(
        self,
        count: int,
        *,
        cpu_s: float,
        wall_s: float,
        replaced: Callable[[str], object],
        trust_anchors: str = "",
    ) -> None:
        self._count = count
        self._cpu_s = cpu_s
        self._wall_s = wall_s
        self._replaced = replaced
        self._trust_anchors = trust_anchors
        self._anchors: int | None = None  # a file of them
        self._lock = threading.Lock()
        self._open = True
        self._children: set[_Child] = set()
        self._idle: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()  # None: yet to start
        self.alive = True
        """Whether the last one that had to be started was."""

    def start(self) -> None:
        """Start the processes; does not wait until they are ready."""
        if self.ISOLATED:
            if self._trust_anchors:
                self._anchors = os.memfd_create("anchors", os.MFD_CLOEXEC)
                os.write(self._anchors, self._trust_anchors.encode())
            for _ in range(self._count + 1):
                self._idle.put(self._started())

    def check(self) -> None:
        """Wait until all are ready.

        Raises:
            DecodersError: one cannot be started.
        """
        child: _Child | None
        for _ in range(self._idle.qsize()):
            child = None
            try:
                child = self._ready(self._idle.get())
            finally:
                self._idle.put(child)

    def stop(self) -> None:
        """End all of them, whatever they do."""
        with self._lock:
            self._open = False
            for child in self._children:
                child.end()
            self._children.clear()
            if self._anchors is not None:
                os.close(self._anchors)
                self._anchors = None

    def decode(self, parts: Iterable[bytes], limits: Limits) -> Picture:
        """Decode a file in a process; for any thread, `count` of them at once.

        Args:
            parts: of the file, in their order; read once.
            limits: what it may have at most, by which its process is limited, too.

        Raises:
            ImageError: as `model.images.decode`; too_expensive, or corrupt_image where the file was
                its decoder's end.
            DecodersError: see there.
            RuntimeError: a bug.
        """
        if not self.ISOLATED:
            return decode(b"".join(parts), limits)
        with _file_of(parts) as file:
            return _picture(self._ask(file, Job(limits, self._cpu_s)), file)

    def inspect(self, parts: Iterable[bytes], limits: Limits) -> Opened:
        """Decode a file as `decode` does, and read what it declares of its origin.

        Where that is the end of its process, the picture is given all the same.
        """
        if not self.ISOLATED:
            data = b"".join(parts)
            picture = decode(data, limits)
            *_, report = Declarations(self._trust_anchors).reports(data)
            return Opened(picture, *_provenance({"provenance": report, "provenance_read": True}))
        with _file_of(parts) as file:
            answer = self._ask(file, Job(limits, self._cpu_s, provenance=True))
            return Opened(_picture(answer, file), *_provenance(answer))

    def _ask(self, file: int, job: Job) -> dict[str, Any]:
        """What a child says of a file; one that is not to be asked again is replaced.

        Of one that ends after it has answered, what it said counts.

        Raises:
            DecodersError: there is none.
        """
        next_one: _Child | None = None
        try:
            child = self._ready(self._idle.get())
            heard: dict[str, Any] = {}
            try:
                child.ask(file, job)
                while "last" not in heard:
                    heard |= child.hear(PROVENANCE_WALL_S if heard else self._wall_s)
            except _EndError as end:
                next_one = self._replace(child, end.reason)
                if not heard:
                    raise end.meaning() from None
            except BaseException:  # its answer would be taken for that to the next question
                next_one = self._replace(child, "crashed")
                raise
            else:
                next_one = self._replace(child, "worn") if heard["last"] else child
            return heard
        finally:
            self._idle.put(next_one)

    def _ready(self, child: "_Child | None") -> "_Child":
        """This one, or another where there is none, it has ended or it does not come up.

        Raises:
            DecodersError: that does not either.
        """
        for one in (child, None):
            started = one or self._started()
            if started is not None and started.boot():
                self.alive = True
                return started
            if started is not None:
                self._remove(started, started.reason)
        self.alive = False
        raise DecodersError("no decoder can be started")

    def _replace(self, child: "_Child", reason: str) -> "_Child | None":
        self._remove(child, reason)
        return self._started()

    def _remove(self, child: "_Child", reason: str) -> None:
        self._forget(child)
        self._replaced(reason)
        if reason != "worn":
            log.warning("a decoder is replaced: %s, %s", reason, child.status)

    def _forget(self, child: "_Child") -> None:
        child.end()
        child.close()
        with self._lock:
            self._children.discard(child)

    def _started(self) -> "_Child | None":
        """A new one; None where there is to be none or there can be none."""
        with self._lock:
            if not self._open:
                return None
            try:
                child = _Child(self._anchors)
            except OSError as error:
                log.error("no decoder can be started: %s", error.strerror)  # noqa: TRY400
                return None
            self._children.add(child)
            return child


class _EndError(Exception):
    """A process gave no answer, for one of the reasons to replace it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def meaning(self) -> Exception:
        """What that says of the image."""
        if self.reason == "killed":
            return DecodersError("a decoder was killed")
        if self.reason == "too_expensive":
            return _too_expensive()
        return ImageError("corrupt_image", "The image data are damaged.")


class _Child:
    """One process, for one thread at a time.

    Args:
        anchors: a file in memory with the trust anchors; None: there are none.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, anchors: int | None) -> None:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the code that runs here
            "MALLOC_ARENA_MAX": "1",  # so that what is freed can be given back
            "OPENBLAS_NUM_THREADS": "1",  # threads take address space, of which it has little
        }
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                files = [theirs.fileno()] if anchors is None else [theirs.fileno(), anchors]
                self._process = subprocess.Popen(  # noqa: S603  (nothing in it is anybody's input)
                    [sys.executable, "-m", "app.decoding.child", *map(str, files)],
                    pass_fds=files,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # signals from a keyboard are the server's
                )
        except BaseException:
            self.close()
            raise
        self._booted = False

    @property
    def reason(self) -> str:
        """Why it is to be replaced, by how it ended."""
        reasons = {-signal.SIGPROF: "too_expensive", -signal.SIGKILL: "killed"}
        return reasons.get(self._process.poll() or 0, "crashed")

    @property
    def status(self) -> str:
        """How it ended."""
        code = self._process.wait()
        return f"exit status {code}" if code >= 0 else f"signal {-code}"

    def boot(self) -> bool:
        """Wait until it is ready, if it has not been; whether it is, and has not ended since."""
        if not self._booted:
            self._connection.settimeout(_BOOT_S)
            with contextlib.suppress(OSError):
                self._booted = self._connection.recv(MESSAGE_BYTES) == READY
        return self._booted and self._process.poll() is None

    def ask(self, file: int, job: Job) -> None:
        """Hand it a file, which it replaces by pixels."""
        with contextlib.suppress(ConnectionError):  # it is gone: to hear of it says why
            socket.send_fds(self._connection, [job.encode()], [file])

    def hear(self, wall_s: float) -> dict[str, Any]:
        """Wait for what it says next.

        Raises:
            _EndError: it says nothing.
        """
        self._connection.settimeout(wall_s)
        with contextlib.suppress(ConnectionError):  # it is gone: its status says why
            try:
                if message := self._connection.recv(MESSAGE_BYTES):
                    answer: dict[str, Any] = json.loads(message)
                    return answer
            except TimeoutError:
                raise _EndError("too_expensive") from None
        self._process.wait()
        raise _EndError(self.reason)

    def end(self) -> None:
        """End the process, whatever it does; for any thread."""
        self._process.kill()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


@contextlib.contextmanager
def _file_of(parts: Iterable[bytes]) -> Iterator[int]:
    """A file in memory.

    Raises:
        DecodersError: there is none left.
    """
    try:
        file = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise DecodersError(error.strerror) from None
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]
        yield file
    finally:
        os.close(file)


def _picture(answer: dict[str, Any], file: int) -> Picture:
    """What a child says of a file, which now holds the pixels.

    Raises:
        ImageError, RuntimeError: as `Decoders.decode`.
    """
    match answer:
        case {"facts": facts}:
            facts = Facts(**facts | {"warnings": tuple(facts["warnings"])})
        case {"error": [code, text]}:
            raise ImageError(code, text)
        case {"expensive": True}:
            raise _too_expensive()
        case _:
            log.error("unexpected %s in a decoder", answer.get("bug"))
            raise RuntimeError("a bug in a decoder")
    shape = (facts.height, facts.width, 3)
    # Were it shorter than is read here, now or later, reading would be this process's end.
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    size = int(np.prod(shape))
    if os.fstat(file).st_size != size:
        raise RuntimeError("a bug in a decoder")
    memory = mmap.mmap(file, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return Picture(np.frombuffer(memory, np.uint8).reshape(shape), facts)


def _provenance(answer: dict[str, Any]) -> tuple[ProvenanceOut, bool]:
    """What a child says that a file declares, and whether that is all."""
    if "provenance_bug" in answer:
        log.error("unexpected %s in reading what a file declares", answer["provenance_bug"])
    if report := answer.get("provenance"):
        try:
            return ProvenanceOut.model_validate(report), "provenance_read" in answer
        except ValidationError:  # without its text, which quotes the report
            log.error("unexpected report of what a file declares")  # noqa: TRY400
    return ProvenanceOut.model_validate(unread()), False


def _too_expensive() -> ImageError:
    return ImageError(
        "too_expensive", "To decode the image takes more time or memory than one image may."
    )
