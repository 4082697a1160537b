import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
from typing import Any

import pytest

from app.decoding.pool import DecodersError
from app.local import LocalBackend, local
from app.service import Service, State
from app.settings import Settings
from model.detector import ModelError
from model.images import Limits
from tests.fakes import load_fake
from tests.server.conftest import eventually


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (ModelError("no weights"), "no weights"),
    ],
)
def test_whatever_stops_the_load_is_one_line(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory and broken drivers are no ModelError, and no reason for a traceback."""

    def load(_: Settings) -> Any:
        raise error

    service, failed = Service(Settings(), local(load)), []
    with caplog.at_level("INFO"):
        asyncio.run(service.start(lambda: failed.append(True)))
    service.stop()
    assert caplog.messages == [f"the model cannot be loaded: {said}"]
    assert caplog.records[0].exc_info is None
    assert service.state is State.FAILED
    assert not service.alive
    assert failed == [True]


def test_torch_that_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It failed once more where the line was written: the server was loading for ever."""

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "model.detector":
                raise FileNotFoundError("no usable temporary folder")

    monkeypatch.delitem(sys.modules, "model.detector")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    service = Service(Settings(), local())
    asyncio.run(service.start(lambda: None))
    service.stop()
    assert service.state is State.FAILED
    assert caplog.messages == [
        "the model cannot be loaded: FileNotFoundError: no usable temporary folder"
    ]


def test_a_thread_that_still_loads_is_busy() -> None:
    """The interpreter's end came upon it in native code, and aborted: status 134 on SIGTERM."""
    entered, gate = threading.Event(), threading.Event()

    def load(settings: Settings) -> Any:
        entered.set()
        gate.wait(20)
        return load_fake(settings)

    async def run() -> None:
        service = Service(Settings(), local(load))
        assert not service.busy
        loading = asyncio.create_task(service.start(lambda: None))
        await asyncio.to_thread(entered.wait, 5)
        loading.cancel()
        await asyncio.wait([loading])
        service.stop()
        assert service.busy
        gate.set()
        await asyncio.to_thread(eventually, lambda: not service.busy)

    asyncio.run(run())


def test_what_is_loaded_is_never_searched_for_garbage() -> None:
    """A full collection through a loaded torch stopped every thread for 190 ms, now and then."""
    gc.unfreeze()
    service = Service(Settings(), local(load_fake))
    asyncio.run(service.start(lambda: None))
    service.stop()
    assert gc.get_freeze_count() > 10_000


def test_decoders_that_could_not_be_started_are_once_they_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lack of descriptors that was long over left the service closed for good."""
    monkeypatch.setattr(Service, "TIDY_S", 0.05)
    popen, lack = subprocess.Popen, threading.Event()

    def scarce(*given: Any, **options: Any) -> Any:
        if lack.is_set():
            raise OSError(24, "Too many open files")
        return popen(*given, **options)

    monkeypatch.setattr(subprocess, "Popen", scarce)

    async def run() -> None:
        service = Service(Settings(decode_workers=1), local(load_fake))
        assert isinstance(service.backend, LocalBackend)
        decoders = service.backend.decoders
        await service.start(lambda: None)
        tidying = asyncio.create_task(service.tidy())
        try:
            lack.set()
            for child in list(decoders._children):
                child.end()
            for _ in range(4):  # each is missed by the first who needs it
                with contextlib.suppress(DecodersError):
                    await asyncio.to_thread(decoders.decode, [b""], Limits())
            assert not decoders.alive
            lack.clear()
            await asyncio.to_thread(eventually, lambda: service.alive)
            service.check_open()
        finally:
            tidying.cancel()
            await asyncio.to_thread(service.stop)

    asyncio.run(run())
