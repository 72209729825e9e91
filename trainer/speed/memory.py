"""Memory: the allocator, told to keep what training frees until the run is over; how much a run took; and none left.

By default glibc gives large blocks back to the kernel at once and asks for them anew a moment later. Every step then
pays for gigabytes of fresh pages: under virtualisation up to a third of its time. Elsewhere than on glibc nothing
happens here.
"""

import contextlib
import ctypes
import errno
import os
import resource
import sys
from pathlib import Path

import torch

# Numbers of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_CONTAINERS_LIMIT = Path("/sys/fs/cgroup/memory.max")


def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "gnu_get_libc_version") else None


def keep_freed_memory() -> None:
    """From now on freed blocks are used again instead of being given back."""
    if libc := _libc():
        libc.mallopt(_M_MMAP_MAX, 0)  # no block with a mapping of its own, which is given back when it is freed
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap by itself


def give_back_memory() -> None:
    """Gives everything that is free back to the kernel; later steps pay for it again."""
    if libc := _libc():
        libc.malloc_trim(0)


def memory_in_all() -> int:
    """Bytes of the machine's memory, or what its container may use of it: beyond that the kernel ends the process."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit, which is the word "max"
        sizes.append(int(_CONTAINERS_LIMIT.read_text()))
    return min(sizes)


# ---- how much a run takes --------------------------------------------------------------------------------------------

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)


class PeakMemory:
    """The most memory that this process has held at once since this was made: on an accelerator if there is one.

    Of several processes each knows its own. On an accelerator it is what tensors took; else it is the process's
    resident memory, its code and libraries included. There is one counter: before another `PeakMemory` is made, ask
    this one for its `peak`.

    Attributes:
        notes: what a reader of the figure has to know: a counter that could not be set back.
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
        """Bytes."""
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


# ---- none left -------------------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its accelerator ran out of memory. For the machine, torch says so only in the text."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
