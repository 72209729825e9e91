"""Memory: settings of the allocator, measurement of peak memory, and detection of out-of-memory errors.

By default, glibc returns large freed blocks to the kernel at once and soon requests new ones. Every step then pays for
gigabytes of fresh pages: under virtualisation, up to a third of its time. So the allocator is told to keep freed memory
until the run is over. Without glibc, the allocator functions do nothing.
"""

import contextlib
import ctypes
import errno
import os
import resource
import sys
from pathlib import Path

import torch

# Constants from <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_CONTAINERS_LIMIT = Path("/sys/fs/cgroup/memory.max")


def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "gnu_get_libc_version") else None


def keep_freed_memory() -> None:
    """Make the allocator reuse freed blocks from now on instead of returning them to the kernel."""
    if libc := _libc():
        libc.mallopt(_M_MMAP_MAX, 0)  # no separate mappings: they are returned to the kernel when freed
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap automatically


def give_back_memory() -> None:
    """Return all free memory to the kernel; later steps have to request it again."""
    if libc := _libc():
        libc.malloc_trim(0)


def memory_in_all() -> int:
    """Return the bytes of memory of the machine, or its container's limit if smaller; the kernel kills beyond it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit: the file then says "max"
        sizes.append(int(_CONTAINERS_LIMIT.read_text()))
    return min(sizes)


# ---- peak memory -----------------------------------------------------------------------------------------------------

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)


class PeakMemory:
    """The peak memory of this process since the object was created, on the accelerator if there is one.

    Each process measures its own memory. On an accelerator it is the memory of tensors, otherwise the process's
    resident memory, including code and libraries. All objects share one counter: call `peak` before creating another
    `PeakMemory`.

    Attributes:
        notes: a note for readers of the figure if the counter could not be reset.
    """

    def __init__(self) -> None:
        self._most = 0
        self.notes: tuple[str, ...] = ()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            self.notes = ("Peak memory is that of the worker since it started, not of this run alone.",)

    def peak(self) -> int:
        """Return the peak in bytes."""
        if torch.cuda.is_available():
            now = torch.cuda.max_memory_allocated()
        elif self.notes:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            now = most if sys.platform == "darwin" else most * 1024
        else:
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            now = int(line.split()[1]) * 1024
        self._most = max(self._most, now)
        return self._most


# ---- out of memory ---------------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or its accelerator ran out of memory. On CPUs, only torch's error text shows it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
