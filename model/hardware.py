"""The machine: how many cores there are to use, what its CPU multiplies, where the tower runs.

torch is imported only by what needs it: settings are read, and mistakes in them told, without it.
"""

import contextlib
import ctypes
import math
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from model.errors import ModelError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how the tower runs.

    Attributes:
        device: where.
        dtype: what floating-point operations compute in.
        engine: what runs it, see `engines.registry`; `auto`: the fastest that can be had.
        precision: what the tower's products multiply in: `int8`, `float` (by `dtype`), or `auto`.
        threads: CPU threads of an engine with threads of its own.
    """

    device: "torch.device"
    dtype: "torch.dtype"
    engine: str = "auto"
    precision: str = "auto"
    threads: int = 1

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        dtype: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Self:
        """Decide what `auto` means here for device and dtype.

        Args:
            device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
            dtype: `auto` (bfloat16 on CUDA and on CPUs that multiply it, by AMX or AVX-512 BF16,
                else float32), or one of `DTYPES`.
            engine: see `Runtime`.
            precision: see `Runtime`.
            threads: see `Runtime`; None: as many as torch has here.

        Raises:
            ModelError: a device that cannot be used here, or a dtype that is not one of the three.
        """
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            where = torch.device(device)
            torch.empty(1, device=where)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"the device {device!r} cannot be used here") from error
        if dtype == "auto":
            # Where a CPU does not multiply bfloat16 itself, it is slower than float32.
            native = where.type == "cuda" or cpu_has("amx_bf16", "avx512_bf16")
            dtype = "bfloat16" if native else "float32"
        if dtype not in DTYPES:
            raise ModelError(f"the dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        threads = threads or torch.get_num_threads()
        return cls(where, getattr(torch, dtype), engine, precision, threads)

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")


def cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    return min(_affinity(), _quota())


def cpu_has(*features: str) -> bool:
    """Whether the CPU has any of these instruction sets, by torch's names."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in features)


def spare_torch_its_cache() -> None:
    """Let torch be imported where no folder can be written to; to be called before.

    It makes one for kernels that it compiles, among the temporary files. None are compiled here,
    and a folder that is there already does as well.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)


def use_threads(count: int) -> None:
    """Let torch use `count` threads when called from this thread."""
    import torch

    torch.set_num_threads(count)
    # A thread takes the number that was set last, by any thread, at its first operation. Asking for
    # it is one: without it, a forward pass would inherit the decoders' single thread.
    torch.get_num_threads()


def memory() -> tuple[int, int]:
    """Bytes of this process's address space, and of it in memory; zeros where that is not told."""
    try:
        virtual, resident = Path("/proc/self/statm").read_text().split()[:2]
    except OSError:  # not Linux
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return int(virtual) * page, int(resident) * page


def return_memory() -> None:
    """Give the system what was freed: glibc would keep it for allocations to come."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def spare_pool() -> ThreadPoolExecutor:
    """Threads that work ahead of the network: all cores but one, torch without helpers in each."""
    import torch

    torch.get_num_threads()  # this thread's own number is settled before the others set theirs
    return ThreadPoolExecutor(max(1, cores() - 1), "ahead", use_threads, (1,))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path = Path("/")) -> int:
    """Whole cores of the least CPU quota over this process, at least 1; no limit where none is.

    Its own cgroup may set one, and each of those around it.
    """
    try:
        memberships = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:  # not Linux
        return sys.maxsize
    least = math.inf
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # In a container the path may be the host's: its own cgroup is then the mount itself.
        own = mount / path.lstrip("/")
        around = [group for group in own.parents if group.is_relative_to(mount)]
        least = min(least, *map(_cores_of, (own, *around)))
    return sys.maxsize if math.isinf(least) else max(1, int(least))


def _cores_of(group: Path) -> float:
    """The quota of one cgroup, of either version; infinite where it sets none."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # ValueError: the quota "max".
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(n) for f in files for n in (group / f).read_text().split())
            if quota > 0:  # version 1 has -1 for none
                return quota / period
    return math.inf
