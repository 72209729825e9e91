"""How a run reaches the database: heartbeats, metrics and samples in short transactions, through outages too.

A run belongs to the attempt that started it. Every write first locks the run's row and checks that `started_at` is
still the one this attempt set: a worker that was suspended while another took its run over writes nothing.
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
# How long a run goes on without a database, or waits for one, before it fails.
PATIENCE_SECONDS = 300.0


class RunLost(Exception):
    """The run was given to another worker, which had reason to believe that this one is dead."""


class WorkerStopping(Exception):
    """The worker was asked to stop: the run goes back to the queue."""


def is_outage(error: BaseException) -> bool:
    """Whether the database, not the statement, is what failed."""
    if isinstance(error, (OperationalError, InterfaceError, TimeoutError)):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def patiently(action: Callable[[], Result], seconds: float = PATIENCE_SECONDS) -> Result:
    """Runs a whole transaction, again and again while the database is away.

    Raises:
        Unavailable: it stayed away for `seconds`.
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

    Metrics and heartbeats are buffered and written about once a second; while the database is away they wait in memory
    and the run goes on.
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
        """Adds a page to the run's artifact `runs/run-<id>/samples.jsonl`, which is whole at any time.

        Raises:
            RunLost: the run is another worker's, and so are its pages.
            StorageFull: no room for it.
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
        """Raises RunCancelled, WorkerStopping or RunLost where the run must end."""
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
        """Writes what is buffered, and a heartbeat."""
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
        """How fast the run goes, how long it will take, and the end of its log."""
        run.tokens_per_second, run.seconds_left = self._pace.tokens_per_second, self._pace.seconds_left
        run.log = self.log.text

    def write_metrics(self, session: Session) -> None:
        """Writes buffered metrics in the caller's transaction; they stay buffered until `flush` has committed."""
        if not self._metrics:
            return
        said = list(self._metrics.items())  # at once: a worker that stops asks while its run goes on in another thread
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
        """A transaction in which the run's row is locked and known to be ours.

        Raises:
            RunLost: it no longer is.
        """
        with self._sessions.begin() as session:
            run = session.get(Run, self.run_id, with_for_update={"key_share": True})
            if run is None or run.state != "running" or run.started_at != self._started_at:
                raise RunLost(f"Run {self.run_id} belongs to another worker now.")
            yield session, run
