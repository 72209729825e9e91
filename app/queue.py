"""The only way to put work on the worker's queues, and a check whether a worker is running."""

from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.sync_psycopg_connector import SyncPsycopgConnector
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Run

QUEUE = "runs"
# Judging waits for endpoints and needs no accelerator, so it has a queue of its own: a training run of hours does not
# hold it up.
JUDGING = "judging"
RUN_TASK = "run"
JUDGE_TASK = "judge"
ASKING = ("judge", "revise")  # runs that only ask an endpoint
# Somebody sits in front of these runs and waits; a queued stage of a round can wait.
GO_AHEAD = ("red_team", "playground")

_manager = JobManager(SyncPsycopgConnector())


def enqueue_run(session: Session, run_id: int, *, ahead: bool = True) -> int:
    """Enqueue a run on the session's own connection, so that the row and its job commit or roll back together.

    The job's lock keeps a run from executing twice at the same time.

    Args:
        ahead: put it before other jobs, if its kind is in GO_AHEAD.

    Returns:
        the job's id.
    """
    connection = session.connection().connection.driver_connection
    session.flush()
    kind = session.scalar(select(Run.kind).where(Run.id == run_id))
    job = Job(
        queue=JUDGING if kind in ASKING else QUEUE,
        priority=int(ahead and kind in GO_AHEAD),
        lock=f"run:{run_id}",
        queueing_lock=None,
        task_name=JUDGE_TASK if kind in ASKING else RUN_TASK,
        task_kwargs={"run_id": run_id},
    )
    enqueued = _manager.defer_job(job, connection=connection)
    assert enqueued.id is not None
    return enqueued.id


def has_worker(session: Session) -> bool:
    """Tell whether a worker has sent a heartbeat within the time of five heartbeats: see `trainer.service.worker`."""
    alive = text("SELECT EXISTS (SELECT FROM procrastinate_workers WHERE last_heartbeat > now() - interval '15 s')")
    return bool(session.scalar(alive))
