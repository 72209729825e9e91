"""Processes that turn Markdown into HTML for the web service, so that no text can block it.

Each text is rendered in a process with its own memory and without the service's secrets. The process ends itself after
`CPU_SECONDS` of work on one text, and is ended when nobody waits for it any longer. The next text gets a new process.
Run as `python -m app.render_processes`, it serves the socket that is its standard input.
"""

import atexit
import contextlib
import logging
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from app.errors import Unavailable

log = logging.getLogger(__name__)

CPU_SECONDS = 1.0  # for one text
START_SECONDS = 60.0
# At most this many of the service's forty threads wait for these processes; the others stay free for other requests.
MOST_WAITING = 8
MEMORY = 1 << 30  # bytes of address space
MOST_HTML = 500_000  # maximum characters of HTML for one text

_LENGTH = struct.Struct("!i")
_NO_HTML = -1
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class Busy(Unavailable):
    """No process had the HTML in time. The same text may be rendered another time."""


# ---- in the service --------------------------------------------------------------------------------------------------


class RenderProcesses:
    """At most `size` processes, each started when it is first needed. Safe to use from many threads.

    Args:
        cpu_seconds: limit for one text.
    """

    def __init__(self, size: int = 2, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(size):
            self._free.put(None)

    def html_of(self, text: str, seconds: float) -> str | None:
        """Return HTML as `app.markup.html_of` does; also None for a text that takes too much work or becomes too long.

        Raises:
            Busy: `seconds` were over first, or too many wait already. A process that works on the text is ended.
        """
        if seconds <= 0:
            raise Busy("No time is left for this page.")
        if not self._places.acquire(blocking=False):
            raise Busy("Too many texts wait to be rendered.")
        try:
            return self._html_of(text, seconds)
        finally:
            self._places.release()

    def _html_of(self, text: str, seconds: float) -> str | None:
        deadline = time.monotonic() + seconds
        try:
            process = self._free.get(timeout=seconds)
        except queue.Empty:
            raise Busy("All rendering processes are busy.") from None
        try:
            if process is None:
                process = _Process(self._cpu_seconds)
                deadline = time.monotonic() + seconds  # the time for starting it does not count
            return process.ask(text, deadline)
        except BaseException as error:
            # After any error, the process might still answer for this text, so it is not used again.
            spent = process.end() if process else None
            process = None
            if not isinstance(error, OSError | EOFError):
                raise
            if spent == -signal.SIGPROF:
                log.info("A text of %d characters took too much work to render.", len(text))
                return None
            raise Busy("A rendering process did not answer.") from error
        finally:
            self._free.put(process)

    def start_one(self) -> None:
        """Start a process now, so that the first reader need not wait for it."""
        with contextlib.suppress(Busy):
            self.html_of("", START_SECONDS)

    def close(self) -> None:
        """End the idle processes."""
        with contextlib.suppress(queue.Empty):
            while True:
                if process := self._free.get_nowait():
                    process.end()


class _Process:
    """One process. Waiting too long raises TimeoutError; a dead process raises another OSError or EOFError."""

    def __init__(self, cpu_seconds: float) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "app.render_processes", str(cpu_seconds)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parent.parent,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # so that Ctrl+C reaches only the service
            )
        try:
            _received(self._socket, time.monotonic() + START_SECONDS)
        except BaseException:
            self.end()
            raise

    def ask(self, text: str, deadline: float) -> str | None:
        _send(self._socket, text, deadline)
        return _received(self._socket, deadline)

    def end(self) -> int:
        """End the process and return its exit status, negative for the signal that ended it."""
        self._socket.close()
        # A process that has ended by itself keeps its own status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(timeout=0.1)
        self._child.kill()
        return self._child.wait()


# ---- on the socket ---------------------------------------------------------------------------------------------------


def _send(connection: socket.socket, text: str | None, deadline: float | None = None) -> None:
    sent = b"" if text is None else text.encode("utf-8", "surrogatepass")
    _wait_until(connection, deadline)
    connection.sendall(_LENGTH.pack(_NO_HTML if text is None else len(sent)) + sent)


def _received(connection: socket.socket, deadline: float | None = None) -> str | None:
    [length] = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    return None if length == _NO_HTML else _exactly(connection, length, deadline).decode("utf-8", "surrogatepass")


def _exactly(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    found = bytearray()
    while len(found) < length:
        _wait_until(connection, deadline)
        part = connection.recv(min(length - len(found), 1 << 16))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def _wait_until(connection: socket.socket, deadline: float | None) -> None:
    # A timeout of 0 would mean non-blocking, which fails at once with another error.
    connection.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))


# ---- in the process --------------------------------------------------------------------------------------------------


def _serve(connection: socket.socket, cpu_seconds: float) -> None:
    from app.markup import html_of  # here, because the service itself does not need it

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _send(connection, "")
    with contextlib.suppress(EOFError):
        while True:
            text = _received(connection) or ""
            # After this time SIGPROF ends the process, even within a regular expression, where no Python code would
            # run.
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            try:
                html = html_of(text)
            except Exception:
                log.exception("A text of %d characters is shown as it is: the parser failed.", len(text))
                html = None
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(connection, html if html is None or len(html) <= MOST_HTML else None)


processes = RenderProcesses()
atexit.register(processes.close)

if __name__ == "__main__":
    _serve(socket.socket(fileno=0), float(sys.argv[1]))
