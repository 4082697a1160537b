"""One file after another, read for what it declares of its origin."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from app.provenance import credentials
from app.provenance.containers import blobs
from app.provenance.report import Report, unsigned, with_credentials


class Declarations:
    """What files declare of their origin.

    Args:
        trust_anchors: certificates (PEM) of authorities whose signers are trusted; none: empty.
        guard: entered while a signature is checked, after all that it takes is loaded.
    """

    def __init__(
        self, trust_anchors: str, guard: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self._trust_anchors = trust_anchors
        self._guard = guard
        self._check: credentials.Checker | None = None

    def reports(self, data: bytes) -> Iterator[Report]:
        """What one declares: as far as nobody signed it; then all of it, where that is more.

        Raises:
            MemoryError: there is not enough.
        """
        found = blobs(data)
        report = unsigned(found)
        yield report
        if found.c2pa:
            self._check = self._check or credentials.checker(self._trust_anchors)
            with self._guard():
                checked = self._check(data, found.mime)
            yield with_credentials(report, checked)
