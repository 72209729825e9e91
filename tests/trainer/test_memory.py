import errno
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.models.loading import loading
from trainer.speed.memory import PeakMemory, is_out_of_memory

MIB = 2**20

# Run in a separate process, because the settings last until a process ends.
SCRIPT = """
import json, os
from trainer.speed.memory import give_back_memory, keep_freed_memory
import torch

def resident():
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 - start

def use_and_free(times):
    for _ in range(times):
        blocks = [torch.ones(2**22) for _ in range(4)]  # 16 MiB each
        del blocks

start = 0
use_and_free(1)
torch.ones(8) @ torch.ones(8)
start = resident()
torch_ = torch.ones(2**25)  # larger than anything glibc keeps by itself
del torch_
default = resident()
keep_freed_memory()
use_and_free(10)
kept = resident()
use_and_free(10)
again = resident()
give_back_memory()
print(json.dumps([default, kept, again, resident()]))
"""


def test_freed_memory_is_kept_used_again_and_given_back_when_told() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    default, kept, again, after = json.loads(done.stdout)  # MiB
    assert default < 16
    assert kept >= 48
    assert again < kept + 16
    assert after < 16


def test_a_machine_without_memory_is_told_from_other_errors() -> None:
    """torch has a special error only for accelerators. The model that is being loaded is not the cause."""
    with pytest.raises(RuntimeError) as refused, loading("models/large"):
        torch.empty(2**55)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert not is_out_of_memory(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert not is_out_of_memory(RuntimeError("a bug"))


def held(size: int) -> None:
    """Use memory for a moment and release it, with a mapping that no allocator keeps."""
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can set its counter back")
def test_peak_memory_is_that_since_the_run_began() -> None:
    before = PeakMemory()
    start = before.peak()
    held(200 * MIB)
    assert start + 190 * MIB < before.peak() < start + 260 * MIB
    after = PeakMemory()
    assert after.peak() < start + 100 * MIB
    assert before.peak() > start + 190 * MIB  # the peak so far stays
    assert before.notes == after.notes == ()


def test_a_counter_that_cannot_be_set_back_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.speed.memory._CLEAR", tmp_path / "missing" / "clear_refs")
    held(100 * MIB)
    memory = PeakMemory()
    assert memory.peak() >= 100 * MIB
    assert "since it started" in memory.notes[0]
