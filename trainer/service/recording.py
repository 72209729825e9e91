"""Record a run in the database: heartbeats, metrics and samples in short transactions that survive outages.

A run belongs to the attempt that started it. Every write first locks the run's row and checks that `started_at` is
still the value that this attempt set. So a worker that was suspended while another worker took over its run writes
nothing.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from threading import Event
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore
from app.domain.pace import Pace
from app.errors import Unavailable
from app.models import Metric, Run
from trainer.reporting import RunCancelled, with_page
from trainer.service.run_log import RunLog
from trainer.service.trackers import Trackers

log = logging.getLogger(__name__)

Result = TypeVar("Result")
FLUSH_SECONDS = 1.0
# How long a run continues without the database, or waits for it, before it fails.
PATIENCE_SECONDS = 300.0


class RunLost(Exception):
    """The run now belongs to another worker, because this one seemed to be dead."""


class WorkerStopping(Exception):
    """The worker was asked to stop, so the run returns to the queue."""


def is_outage(error: BaseException) -> bool:
    """Return whether the database failed, rather than the statement."""
    if isinstance(error, (OperationalError, InterfaceError, TimeoutError)):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def patiently(action: Callable[[], Result], seconds: float = PATIENCE_SECONDS) -> Result:
    """Run a whole transaction, and retry it while the database is unavailable.

    Raises:
        Unavailable: the database was unavailable for `seconds`.
    """
    deadline, pause = time.monotonic() + seconds, 0.25
    while True:
        try:
            return action()
        except Exception as error:
            if not is_outage(error):
                raise
            if time.monotonic() + pause > deadline:
                raise Unavailable(
                    f"The database did not answer for {seconds:.0f} seconds.", "Bring it back, then retry."
                ) from error
            log.warning("The database is away, trying again in %.1f s: %s", pause, str(error).splitlines()[0])
            time.sleep(pause)
            pause = min(pause * 2, 5.0)


class RunRecorder:
    """The reporter of a run in the database (see `trainer.reporting.Reporter`).

    Metrics and heartbeats are buffered and written about once a second. While the database is unavailable, they stay in
    memory and the run continues.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        run_id: int,
        started_at: datetime,
        stopping: Event,
        store: ArtifactStore,
        log_before: str = "",
        trackers: Trackers | None = None,
    ) -> None:
        self.run_id, self.store = run_id, store
        self.trackers = trackers or Trackers((), "", store.root)
        self.log, self._pace = RunLog(log_before), Pace(time.monotonic())
        self._sessions, self._started_at, self._stopping = sessions, started_at, stopping
        self._metrics: dict[tuple[str, str, int], float] = {}
        self._progress = (0, 0, "")
        self._next_flush = 0.0
        self._away_since: float | None = None

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        for name, value in values.items():
            self._metrics[name, slice, step] = float(value)
        self.trackers.metrics(step, values, slice)
        if not slice:
            self.log.metrics(step, values)

    def worked(self, tokens: int) -> None:
        self._pace.worked(tokens)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a page to the run's artifact `runs/run-<id>/samples.jsonl`, which is replaced atomically.

        Raises:
            RunLost: the run, and so its pages, belongs to another worker.
            StorageFull: the disk has no room for the page.
        """
        location = f"runs/run-{self.run_id}/samples.jsonl"

        def write() -> None:
            with self.held():
                path = self.store.root / location
                pages = with_page(path.read_text() if path.exists() else "", step, rows)
                with self.store.file(location) as staged:
                    staged.write_text(pages)

        patiently(write)

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Record progress; raise RunCancelled, WorkerStopping or RunLost if the run must end."""
        self._progress = (done, total, message)
        if self._pace.report(time.monotonic(), done, total, message) and message:
            self.log.say(f"{message}: {done:,} of {total:,}")
        if self._stopping.is_set():
            raise WorkerStopping
        if time.monotonic() < self._next_flush:
            return
        try:
            self.flush()
            self._away_since = None
        except Exception as error:
            if not is_outage(error):
                raise
            self._bear(error)
        self._next_flush = time.monotonic() + FLUSH_SECONDS

    def _bear(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        log.warning("The database is away; run %d goes on: %s", self.run_id, str(error).splitlines()[0])
        if now - self._away_since > PATIENCE_SECONDS:
            raise Unavailable("The database did not come back.", "Bring it back, then retry.") from error

    def flush(self) -> None:
        """Write the buffered values and a heartbeat."""
        with self.held() as (session, run):
            run.heartbeat_at = session.scalar(select(func.clock_timestamp()))
            run.progress_done, run.progress_total, run.progress_message = self._progress
            cancelled = run.cancel_requested
            self.write_facts(run)
            self.write_metrics(session)
        self._metrics.clear()
        if cancelled:
            raise RunCancelled("The run was cancelled.")

    def write_facts(self, run: Run) -> None:
        """Write the run's speed, its remaining time and the end of its log."""
        run.tokens_per_second, run.seconds_left = self._pace.tokens_per_second, self._pace.seconds_left
        run.log = self.log.text

    def write_metrics(self, session: Session) -> None:
        """Write buffered metrics in the caller's transaction; they stay in the buffer until `flush` has committed."""
        if not self._metrics:
            return
        said = list(self._metrics.items())  # a copy: a stopping worker calls this while the run's thread adds metrics
        rows = [
            {"run_id": self.run_id, "name": name, "slice": slice, "step": step, "value": value}
            for (name, slice, step), value in said
        ]
        upsert = insert(Metric)
        session.execute(
            upsert.on_conflict_do_update(
                index_elements=["run_id", "name", "slice", "step"], set_={"value": upsert.excluded.value}
            ),
            rows,
        )

    @contextmanager
    def held(self) -> Iterator[tuple[Session, Run]]:
        """Open a transaction in which the run's row is locked and belongs to this attempt.

        Raises:
            RunLost: the run belongs to another worker.
        """
        with self._sessions.begin() as session:
            run = session.get(Run, self.run_id, with_for_update={"key_share": True})
            if run is None or run.state != "running" or run.started_at != self._started_at:
                raise RunLost(f"Run {self.run_id} belongs to another worker now.")
            yield session, run
