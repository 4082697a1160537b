"""How many cores there are to use, and how threads share them."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    return min(_affinity(), _quota())


def use_threads(count: int) -> None:
    """Let torch use `count` threads when called from this thread."""
    import torch  # settings are read without it

    torch.set_num_threads(count)
    # A thread takes the number that was set last, by any thread, at its first operation. Asking for
    # it is one: without it, a forward pass would inherit the decoders' single thread.
    torch.get_num_threads()


def spare_pool() -> ThreadPoolExecutor:
    """Threads that work ahead of the network: all cores but one, torch without helpers in each."""
    import torch

    torch.get_num_threads()  # this thread's own number is settled before the others set theirs
    return ThreadPoolExecutor(max(1, cores() - 1), "ahead", use_threads, (1,))


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
