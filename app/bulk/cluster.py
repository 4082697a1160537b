"""A Ray cluster: this machine's own for as long as a run takes, or one that is there.

What Ray holds of images is in memory alone. Its object store goes to a disk in three ways: where
`/dev/shm` is small, as a whole; by spilling, where it is full; and by falling back, where an object
is larger than what is left of it. Here all three stay in `/dev/shm`. Of a cluster that is joined,
that is its operator's part.
"""

import fcntl
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import auto_init_hook

from app.bulk.store import BulkError
from app.settings import Settings

SHM = Path("/dev/shm")  # noqa: S108  (no disk)
_PREFIX = "nsnet-bulk-"
_MIB = 1 << 20
_LEAST_STORE = 256 * _MIB
_MEMORY_SHARE = 0.3  # of the machine's, for the object store: Ray's own measure


@contextmanager
def cluster(settings: Settings, store_bytes: int | None = None) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine for this run alone.

    Args:
        settings: as many images as these decode at once, as many CPUs has a cluster of its own.
        store_bytes: of its object store; None: what there is room for.

    Raises:
        BulkError: there is none to be had.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would tell its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it writes between our lines
    # Else a thread that is left behind starts another by what it asks, with a store on a disk. The
    # variable for it, RAY_ENABLE_AUTO_CONNECT, is read where Ray is imported.
    auto_init_hook.enable_auto_connect = False
    with ExitStack() as stack:
        if is_joined():
            where: dict[str, Any] = {"address": os.environ["RAY_ADDRESS"]}
        else:
            where = {
                "address": "local",
                "num_cpus": settings.decoders(),
                "include_dashboard": False,
                "object_store_memory": store_bytes or _store_bytes(),
                "object_spilling_directory": str(stack.enter_context(_folder())),
                "_plasma_directory": str(SHM),
            }
        try:
            with _hushed():
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # noqa: BLE001  (of many kinds, and of many lines)
            raise BulkError(f"Ray cannot be started or joined: {type(error).__name__}") from None
        stack.callback(ray.shutdown)
        yield


def is_joined() -> bool:
    """Whether the cluster is somebody else's."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def _hushed() -> Iterator[None]:
    """Let nothing be written to standard error: Ray says there how loud it is to be."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _store_bytes() -> int:
    """Half of the shared memory that is left: the other half is for what spills.

    Raises:
        BulkError: that is too little.
    """
    try:
        status = os.statvfs(SHM)
    except OSError:
        raise BulkError(f"there is no {SHM}: Ray would write images to a disk") from None
    half = status.f_bavail * status.f_frsize // 2
    if half < _LEAST_STORE:
        raise BulkError(
            f"{SHM} has {2 * half // _MIB} MiB left, and {2 * _LEAST_STORE // _MIB} are needed: "
            "Ray would write images to a disk. Containers have more with --shm-size"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(half, int(_MEMORY_SHARE * memory))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory for what spills; those of runs that were killed are removed.

    Whoever owns one has it locked.
    """
    for left in SHM.glob(f"{_PREFIX}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=SHM))
    try:
        with _locked(folder):
            folder.mkdir(exist_ok=True)  # another run may have come between
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError where somebody else has it, or it is somebody else's."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
