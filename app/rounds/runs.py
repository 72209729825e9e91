"""Handling what the worker reports about a run, and its effect on the round. The worker holds the run's row locked.

Each function works in the caller's transaction and never commits. Rows are locked in one order: run, project, round.
"""

import logging
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import func
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.rounds import ACTIVE, ALGORITHMS, after
from app.errors import PrefloopError
from app.models import Project, Round, Run
from app.queue import enqueue_run
from app.rounds import queries, stages
from app.rounds.adoption import decide
from app.rounds.reward_views import store_views
from app.rounds.sampling import storable
from app.rounds.stages import Maker
from app.settings import SamplingServer
from app.suites import service as suites

log = logging.getLogger(__name__)

# FOR NO KEY UPDATE: it must not wait for an import, whose new rows only refer to the project.
LOCK = {"key_share": True}


def run_started(session: Session, run: Run) -> None:
    """Record that the worker has taken a run: count the attempt, and reset what an earlier attempt had reported.

    Raises:
        ImpossibleTransition: the run's round has ended, or waits for another stage.
    """
    if run.round_id is not None:
        round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
        round_.state = after(round_.state, "started", stages.plan_of(round_))
    run.state = "running"
    run.attempts += 1
    run.attempts_since_checkpoint += 1
    # Also proves to the worker that the run is still its own: see trainer.service.recording.
    run.started_at = run.heartbeat_at = session.scalar(func.clock_timestamp())
    run.progress_done, run.progress_total, run.progress_message = 0, 0, ""
    run.tokens_per_second = run.seconds_left = None


def run_progressed(run: Run) -> None:
    """Record that a checkpoint or samples were stored. If the worker dies now, the run is probably not the cause."""
    run.attempts_since_checkpoint = 0


def run_given_back(session: Session, run: Run) -> None:
    """Return the run to the queue when the worker stops, as if this attempt had not happened."""
    run.state = "queued"
    run.attempts -= 1
    run.attempts_since_checkpoint = max(0, run.attempts_since_checkpoint - 1)
    enqueue_run(session, run.id)


def run_finished(
    session: Session,
    store: ArtifactStore,
    run: Run,
    result: dict[str, Any],
    digest: str | None = None,
    server: SamplingServer | None = None,
) -> None:
    """Record that a run has succeeded and its output is saved: add its model, advance the round, enqueue the next run.

    The last run of a round decides whether the new policy becomes the project's: see `app.rounds.adoption`.

    If the next run cannot be created, the round fails in that stage with a reason; this run's output is kept.

    Args:
        result: the recipe's figures, as JSON; a sampling run's totals over all attempts are added here.
        digest: of the model folder at `output_of(run.id)`, for runs that train a model.
    """
    result = storable(result)
    if run.kind == "sample":
        result = result | queries.sampled(session, run.id)
    if measured := result.get("suites"):
        suites.store_results(session, run, measured)
    kept = {name: value for name, value in result.items() if name != "suites"}
    run.state, run.result, run.finished_at = "succeeded", kept, _now()
    if run.round_id is None:
        return
    project = session.get_one(Project, run.project_id, with_for_update=LOCK)
    round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
    if run.kind == "reward" or run.kind in ALGORITHMS:
        model = stages.record_model(session, round_, run, digest, result)
        if model.role == "reward":
            store_views(session, store, model)
    if run.cancel_requested:
        end_round(round_, "cancelled")
        return
    round_.state = after(round_.state, "succeeded", stages.plan_of(round_))
    if round_.state == "done":
        round_.finished_at = _now()
        decide(session, project, round_, result.get("metrics", {}) if run.kind == "evaluate" else {})
        return
    try:
        with session.begin_nested():
            enqueue_stage(Maker(session, store, project, server), round_)
    except DBAPIError:
        raise  # the worker repeats the whole transaction
    except Exception as error:
        log.exception("The stage %s of round %d could not begin", round_.state, round_.id)
        reason = str(error) if isinstance(error, PrefloopError) else f"{type(error).__name__}: {error}"
        round_.error = f"The stage “{round_.state}” could not begin. {reason}"
        end_round(round_, "failed")


def run_failed(session: Session, run: Run, error: str) -> None:
    """Record that a run has failed. Its round fails too, with the error, and can be retried."""
    run.state, run.error, run.finished_at = "failed", error, _now()
    _end_round_of(session, run, "failed", error)


def run_cancelled(session: Session, run: Run) -> None:
    run.state, run.finished_at = "cancelled", _now()
    _end_round_of(session, run, "cancelled")


def _end_round_of(session: Session, run: Run, how: Literal["failed", "cancelled"], error: str | None = None) -> None:
    """End the run's round. A round that has already ended stays as it is."""
    round_ = session.get_one(Round, run.round_id, with_for_update=LOCK) if run.round_id is not None else None
    if round_ is not None and round_.state in ACTIVE:
        round_.error = error
        end_round(round_, how)


def enqueue_stage(maker: Maker, round_: Round) -> None:
    enqueue_run(maker.session, maker.run_of(round_).id)


def end_round(round_: Round, how: Literal["failed", "cancelled"]) -> None:
    round_.state, round_.finished_at = after(round_.state, how), _now()


def _now() -> datetime:
    return datetime.now(UTC)
