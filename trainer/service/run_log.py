"""The last lines of a run's log, shown on its page: log messages, stages of the run, and metrics now and then."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.logs import Discreet, without_secrets

LINES = 40
LONGEST = 300  # maximum characters of a line
METRICS_SECONDS = 10.0  # minimum time between two lines of metrics
SHOWN = 6  # metrics in a line
OTHER_THREADS = "trainer.sampling.serving"  # this module logs from threads other than the run's


class RunLog(logging.Handler):
    """Keeps the newest lines; lines of earlier attempts stay until newer ones replace them.

    Args:
        before: the log text of the run's earlier attempts.
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
        """Add a line with a time stamp."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"[:LONGEST])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line with a step's first metrics, if the last line of metrics is old enough."""
        now = time.monotonic()
        if now >= self._next_metrics:
            self._next_metrics = now + METRICS_SECONDS
            shown = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:SHOWN])
            self.say(f"step {step}: {shown}")

    @property
    def text(self) -> str:
        """The log as text that PostgreSQL accepts: valid UTF-8 without NUL."""
        return "\n".join(list(self._lines)).replace("\0", "").encode(errors="replace").decode()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Collect the messages that this thread logs inside the context."""
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
