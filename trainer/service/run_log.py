"""The end of a run's log, which its page shows: what it logged, what it began to do, and its metrics now and then."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.logs import Discreet, without_secrets

LINES = 40
LONGEST = 300  # characters of a line
METRICS_SECONDS = 10.0  # at least so long between two lines of metrics
SHOWN = 6  # metrics of a line
OTHER_THREADS = "trainer.sampling.serving"  # answers of a server are awaited in threads of their own


class RunLog(logging.Handler):
    """Keeps the newest lines; those of an attempt before this one stay until newer ones push them out.

    Args:
        before: the text that the run's earlier attempts left.
    """

    def __init__(self, before: str = "") -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_Short("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._lines: deque[str] = deque(before.splitlines(), LINES)
        self._thread = threading.get_ident()
        self._next_metrics = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread or record.name.startswith(OTHER_THREADS):
            self._lines.extend(line[:LONGEST] for line in self.format(record).splitlines())

    def say(self, text: str) -> None:
        """Adds a line of the run's own."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"[:LONGEST])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a step's first metrics, if the last such line is old enough."""
        now = time.monotonic()
        if now >= self._next_metrics:
            self._next_metrics = now + METRICS_SECONDS
            shown = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:SHOWN])
            self.say(f"step {step}: {shown}")

    @property
    def text(self) -> str:
        """As a database takes it: without NUL, and in characters that UTF-8 has."""
        return "\n".join(list(self._lines)).replace("\0", "").encode(errors="replace").decode()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears what is logged in this thread meanwhile."""
        logger = logging.getLogger()
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


class _Short(Discreet):
    """Keep only an exception's name and message: the worker's log has the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        said = logging.makeLogRecord(record.__dict__ | {"exc_info": None, "exc_text": None, "stack_info": None})
        error = record.exc_info[1] if record.exc_info else None
        return super().format(said) + (without_secrets(f"\n{type(error).__name__}: {error}") if error else "")
