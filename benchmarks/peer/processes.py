"""Processes that a benchmark starts. They end when the benchmark ends, even if it is killed."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

PR_SET_PDEATHSIG = 1
START_SECONDS = 180
STOP_SECONDS = 15


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
    """Run a command and wait for its end. Its output goes to `log`.

    Raises:
        SystemExit: the command failed; the message has the last lines of its output.
    """
    with _started(command, environment, folder, log) as process:
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{_tail(log)}")


@contextlib.contextmanager
def served(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, probe: str
) -> Iterator[int]:
    """Keep a server running; yield its process id once the address `probe` answers 200.

    Raises:
        SystemExit: the server ended or did not answer in time.
    """
    with _started(command, environment, folder, log) as process:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(probe):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)} does not serve {probe}:\n{_tail(log)}")
            time.sleep(0.2)
        yield process.pid


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that these processes and all their descendants have used."""
    total = 0.0
    for pid in pids:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # its time is then part of its parent's `children` time
                total += sum(process.cpu_times()[:4])  # user, system, and both of children that have ended
    return total


@contextlib.contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a new session, so that Ctrl-C reaches only the benchmark, which then stops the processes."""

    def before_start() -> None:
        if sys.platform == "linux":
            # If the benchmark is killed, the kernel ends its children.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            preexec_fn=before_start,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also kills workers that still run
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
