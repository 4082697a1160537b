"""The audit log: one line of JSON for each image, of what was said to whom."""

import errno
import json
import logging
import os
import select
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from structlog.contextvars import get_contextvars

from app.schemas import DetectionOut
from app.settings import SettingsError

log = logging.getLogger(__name__)

# A pipe that nobody empties refuses lines instead of holding up the service.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_STDOUT = 1


class AuditLog:
    """Appends a line per image, and goes on where that fails.

    A line is with the kernel, in one piece, before the client has its answer. A file that was
    moved away, as log rotation does, is opened anew by its name.

    Args:
        target: path of the file; `-` for standard output; empty for no log.
        lost: called for each line that could not be written.

    Raises:
        SettingsError: the file cannot be opened.
    """

    def __init__(self, target: str, lost: Callable[[], object]) -> None:
        self._path = "" if target == "-" else target
        self._lost = lost
        self._failing = False
        self._torn = False
        self._file = _STDOUT if target == "-" else None
        if self._path:
            try:
                self._file = self._open()
            except OSError as error:
                raise SettingsError(f"NSNET_AUDIT_LOG: {_reason(error)}") from None

    def record(
        self, identifier: str, sha256: str | None, outcome: DetectionOut | str, model: str
    ) -> None:
        """Write what became of one image; request and key are those of the context.

        Args:
            identifier: the answer's id.
            sha256: of the upload; None where it never came to that.
            outcome: what the client is told: the answer, or an error's code.
            model: sha256 of the checkpoint.
        """
        if self._file is None:
            return
        context = get_contextvars()
        answer = None if isinstance(outcome, str) else outcome
        provenance = answer.provenance if answer else None
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": context.get("request_id"),
            "id": identifier,
            "key": context.get("key"),
            "sha256": sha256,
            "verdict": answer.verdict if answer else None,
            "score": answer.score if answer else None,
            "declares": provenance.declares if provenance else None,
            "error": None if answer else outcome,
            "model": model,
        }
        try:
            if self._path and self._moved(self._file):
                fresh = self._open()
                os.close(self._file)
                self._file, self._torn = fresh, False
            self._append(self._file, json.dumps(line).encode() + b"\n")
        except OSError as error:
            self._lost()
            if not self._failing:  # once, not for every line until there is room again
                log.error("audit lines are lost: %s", _reason(error))  # noqa: TRY400
            self._failing = True
        else:
            self._failing = False

    def _append(self, file: int, line: bytes) -> None:
        if not self._path and not _takes_more(file):
            raise OSError(errno.EAGAIN, "")
        data = b"\n" + line if self._torn else line
        written = os.write(file, data)
        self._torn = written < len(data)  # a full disk took a piece: the next line must not join it
        if self._torn:
            raise OSError(errno.ENOSPC, "")

    def _moved(self, file: int) -> bool:
        try:
            return not os.path.samestat(Path(self._path).stat(), os.fstat(file))
        except FileNotFoundError:
            return True

    def _open(self) -> int:
        return os.open(self._path, _FLAGS, 0o640)


def _takes_more(file: int) -> bool:
    """Whether a line can be written without waiting.

    For standard output, which is shared: not to wait cannot be asked of it for this process alone.
    A pipe that can be written has room for 4096 bytes, which is several lines.
    """
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(0))


def _reason(error: OSError) -> str:
    """Without the path, in lower case, as part of a sentence."""
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__
