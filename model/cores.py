"""How many cores there are to use, and how threads share them."""

import os
import sys
from pathlib import Path


def cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    return min(_affinity(), _quota())


def spare_threads() -> int:
    """Threads that work ahead of the network: all cores but one."""
    return max(1, cores() - 1)


def one_thread() -> None:
    """Let torch compute what this thread asks for without helpers: there are more like it."""
    import torch  # settings are read without it

    torch.set_num_threads(1)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Whole cores of a container's CPU quota (cgroup v2), at least 1; no limit where none is."""
    try:
        quota, period = file.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or the quota "max"
        return sys.maxsize
