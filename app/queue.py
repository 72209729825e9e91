"""The one way to put work on the worker's queue."""

from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.sync_psycopg_connector import SyncPsycopgConnector
from sqlalchemy.orm import Session

QUEUE = "runs"
RUN_TASK = "run"

_manager = JobManager(SyncPsycopgConnector())


def enqueue_run(session: Session, run_id: int) -> int:
    """Enqueues a run on the session's own connection, so that the row and its job commit or roll back together.

    Returns the job's id. The lock lets a run's job never execute twice at the same time.
    """
    connection = session.connection().connection.driver_connection
    session.flush()
    job = Job(queue=QUEUE, lock=f"run:{run_id}", queueing_lock=None, task_name=RUN_TASK, task_kwargs={"run_id": run_id})
    enqueued = _manager.defer_job(job, connection=connection)
    assert enqueued.id is not None
    return enqueued.id
