"""Rounds: what one would read, starting, cancelling and retrying it, and what happens when one of its runs ends.

Each function works in the caller's transaction and never commits: a round, its snapshot's row, its first run and that
run's job appear together or not at all. Rows are locked in one order: run, project, round.
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.accounts.service import audit
from app.artifacts import ArtifactStore
from app.domain.rounds import ACTIVE, after, stage_of
from app.errors import Conflict, InvalidInput
from app.models import ModelVersion, Project, Round, Run, User
from app.queue import enqueue_run
from app.rounds import queries, stages
from app.rounds.forms import RoundConfig
from app.rounds.queries import stored_samples
from app.rounds.sampling import NewSample, store_samples
from app.rounds.snapshots import freeze
from app.rounds.stages import output_of

__all__ = [
    "NewSample",
    "adopt_base_model",
    "begin_sampling",
    "cancel",
    "cancel_run",
    "output_of",
    "preview",
    "retry",
    "retry_run",
    "run_cancelled",
    "run_failed",
    "run_finished",
    "run_started",
    "start",
    "store_samples",
    "stored_samples",
]

MIN_PAIRS = 20  # with a winner; from fewer, training would learn noise (trainer.data refuses them too)
# FOR NO KEY UPDATE: it must not wait for an import, whose new rows merely refer to the project.
LOCK = {"key_share": True}
FEW_PAIRS = 100  # below this a reward model learns little
FIRST_PROMPTS = 200  # prompts sampled before the first round


class Preview(NamedTuple):
    """What a round started now would read."""

    train: int
    winners: int  # of train, those that are not ties
    heldout: int
    ties: int
    undecided: int
    new_judgments: int
    policy: ModelVersion | None
    active: Round | None
    warnings: tuple[str, ...]

    @property
    def can_start(self) -> bool:
        return self.policy is not None and self.active is None and self.winners >= MIN_PAIRS


def preview(session: Session, project: Project) -> Preview:
    counts = queries.available(session, project.id)
    past = queries.rounds(session, project.id)
    policy = session.get(ModelVersion, project.policy_id) if project.policy_id else None
    new_judgments = queries.judgments_since(session, project.id, past[0].created_at if past else None)
    warnings = []
    if policy is None:
        warnings.append("The project has no model yet: a round needs a policy to improve.")
    if counts.winners < MIN_PAIRS:
        warnings.append(
            f"{counts.winners} decided comparisons with a winner can be trained on; a round needs {MIN_PAIRS}. "
            "Label more, or settle those under review."
        )
    elif counts.winners < FEW_PAIRS:
        warnings.append(f"Only {counts.winners} comparisons to train on: from under {FEW_PAIRS}, little is learned.")
    if counts.train and not counts.heldout:
        warnings.append("No held-out comparison is decided, so the reward model's accuracy cannot be measured.")
    if past and not new_judgments:
        warnings.append(f"No judgment was given since round {past[0].number}: it would train on the same data again.")
    if counts.train and counts.ties * 2 > counts.train + counts.heldout:
        warnings.append("More than half of the comparisons are ties, which say little about what is better.")
    return Preview(
        *counts,
        new_judgments=new_judgments,
        policy=policy,
        active=queries.active_round(session, project.id),
        warnings=tuple(warnings),
    )


def start(session: Session, store: ArtifactStore, project: Project, operator: User, config: RoundConfig) -> Round:
    """Freezes what the round reads and enqueues its first run.

    Raises:
        Conflict: a round of the project is under way.
        InvalidInput: the project has no policy, or too few decided comparisons.
        StorageFull: no room for the snapshot.
    """
    _lock(session, project)
    _refuse_second(session, project)
    if project.policy_id is None:
        raise InvalidInput("The project has no model to improve.", "Give it a base model first.")
    snapshot = freeze(
        session,
        store,
        project,
        train_limit=config.train_limit,
        heldout_limit=config.heldout_limit,
        seed=config.seed,
    )
    if (winners := snapshot.counts["winners"]) < MIN_PAIRS:
        raise InvalidInput(
            f"A round needs {MIN_PAIRS} decided comparisons with a winner to train on; there are {winners}.",
            "Label or import more, or settle those under review.",
        )
    past = queries.rounds(session, project.id)
    round_ = Round(
        project_id=project.id,
        number=past[0].number + 1 if past else 1,
        state="frozen",
        algorithm=config.algorithm,
        config=config.model_dump(mode="json"),
        snapshot_id=snapshot.id,
        policy_before_id=project.policy_id,
        started_by=operator.id,
    )
    session.add(round_)
    session.flush()
    audit(
        session,
        operator.id,
        "round.started",
        project.id,
        number=round_.number,
        snapshot=snapshot.digest,
        config=round_.config,
    )
    _enqueue_stage(session, store, project, round_)
    return round_


def begin_sampling(session: Session, store: ArtifactStore, project: Project) -> Run:
    """Enqueues a run that samples the queue's first comparisons from the present policy, outside any round.

    Raises:
        Conflict: such a run is under way, or no rubric is published.
        InvalidInput: the project has no policy or no prompts.
    """
    _lock(session, project)
    if project.policy_id is None:
        raise InvalidInput("The project has no model to sample from.", "Give it a base model first.")
    if queries.newest_rubric_id(session, project.id) is None:
        raise Conflict("The project has no published rubric.", "Publish one: labelers judge by it.")
    if any(run.state in ("queued", "running") for run in queries.sampling_runs(session, project.id)):
        raise Conflict("Responses are being sampled already.", "Wait until that is done.")
    run = stages.make_sampling_run(session, store, project, FIRST_PROMPTS)
    enqueue_run(session, run.id)
    return run


def adopt_base_model(session: Session, project: Project, base: str, name: str) -> ModelVersion:
    """Registers a model as the project's base and first policy. `base` is a location in the store, or a hub name."""
    model = ModelVersion(project_id=project.id, role="base", name=name, base=base)
    session.add(model)
    session.flush()
    project.base_model_id = project.policy_id = model.id
    return model


# ---- what people do to a round ---------------------------------------------------------------------------------------


def cancel(session: Session, round_: Round, actor: User) -> None:
    """Ends a round: at once where its run waits, at the run's next heartbeat where it works. Models saved stay.

    Raises:
        Conflict: it has ended already.
    """
    # If a run ended while we waited for its row, the next stage's run was committed with that end: a second statement
    # sees it, the first could not.
    unfinished = queries.unfinished_runs(session, round_.id) or queries.unfinished_runs(session, round_.id)
    _lock(session, round_)
    if round_.state not in ACTIVE:
        raise Conflict(f"Round {round_.number} is {round_.state} already.", "Nothing is left to cancel.")
    audit(session, actor.id, "round.cancelled", round_.project_id, number=round_.number)
    for run in unfinished:
        _cancel(session, run)
    if not unfinished:
        _end(round_, "cancelled")


def cancel_run(session: Session, run: Run, actor: User) -> None:
    """Ends a sampling run outside a round; what it has stored stays."""
    _lock(session, run)
    if run.state not in ("queued", "running"):
        raise Conflict(f"This run has {run.state} already.", "Nothing is left to cancel.")
    audit(session, actor.id, "run.cancelled", run.project_id, run=run.id)
    _cancel(session, run)


def _cancel(session: Session, run: Run) -> None:
    run.cancel_requested = True
    if run.state == "queued":  # its job will find it cancelled and do nothing
        run_cancelled(session, run)


def retry(session: Session, round_: Round, actor: User) -> None:
    """Repeats the stage in which a round failed; what earlier stages made, and samples already stored, are kept.

    Raises:
        Conflict: the round has not failed, is not the newest, or another one is under way.
    """
    project = session.get_one(Project, round_.project_id)
    _lock(session, project)
    failed = [run for run in queries.runs_of(session, round_.id) if run.state == "failed"]
    _lock(session, round_)
    if round_.state != "failed" or not failed:
        raise Conflict(f"Round {round_.number} is {round_.state}, not failed.", "Only a failed round can be retried.")
    _refuse_second(session, project)
    if queries.rounds(session, project.id)[0].id != round_.id:
        raise Conflict("A newer round has been run since.", "Start a new round: it reads the newer judgments too.")
    round_.state, round_.error, round_.finished_at = stage_of(failed[-1].kind), None, None
    audit(session, actor.id, "round.retried", project.id, number=round_.number, stage=round_.state)
    _requeue(session, failed[-1])


def retry_run(session: Session, run: Run, actor: User) -> None:
    """Repeats a failed or cancelled sampling run outside a round; samples it has stored are kept."""
    _lock(session, run)
    if run.state not in ("failed", "cancelled") or run.round_id is not None:
        raise Conflict("This run cannot be retried.", "Only a sampling run that failed can.")
    audit(session, actor.id, "run.retried", run.project_id, run=run.id)
    _requeue(session, run)


def _requeue(session: Session, run: Run) -> None:
    run.state, run.attempts, run.cancel_requested = "queued", 0, False
    run.error, run.finished_at, run.started_at, run.heartbeat_at = None, None, None, None
    run.progress_done, run.progress_total, run.progress_message = 0, 0, ""
    enqueue_run(session, run.id)


# ---- what the worker reports; it holds the run's row locked ----------------------------------------------------------


def run_started(session: Session, run: Run) -> None:
    """The worker has taken a run. Counts the attempt and forgets what an earlier one, if it died, had reported."""
    run.state = "running"
    run.attempts += 1
    # Also the worker's proof that the run is still its own: see trainer.recording.
    run.started_at = run.heartbeat_at = session.scalar(func.clock_timestamp())
    run.progress_done, run.progress_total, run.progress_message = 0, 0, ""
    if run.round_id is not None:
        round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
        round_.state = after(round_.state, "started")


def run_finished(
    session: Session, store: ArtifactStore, run: Run, result: dict[str, Any], digest: str | None = None
) -> None:
    """A run has succeeded and what it made is saved: records the model, advances the round, enqueues the next run.

    Args:
        result: the recipe's figures, JSON.
        digest: of the model folder at `output_of(run.id)`, for runs that train one.
    """
    run.state, run.result, run.finished_at = "succeeded", result, _now()
    if run.round_id is None:
        return
    project = session.get_one(Project, run.project_id, with_for_update=LOCK)
    round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
    if run.kind in ("reward", "dpo", "ppo"):
        model = stages.record_model(session, round_, run, digest, result)
        if model.role == "policy" and not run.cancel_requested:
            project.policy_id = model.id
    if run.cancel_requested:
        _end(round_, "cancelled")
        return
    round_.state = after(round_.state, "succeeded")
    if round_.state == "done":
        round_.finished_at = _now()
    else:
        _enqueue_stage(session, store, project, round_)


def run_failed(session: Session, run: Run, error: str) -> None:
    """A run has failed, and with it its round, which says so and can be retried."""
    run.state, run.error, run.finished_at = "failed", error, _now()
    if run.round_id is not None:
        round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
        round_.error = error
        _end(round_, "failed")


def run_cancelled(session: Session, run: Run) -> None:
    run.state, run.finished_at = "cancelled", _now()
    if run.round_id is not None:
        _end(session.get_one(Round, run.round_id, with_for_update=LOCK), "cancelled")


def _enqueue_stage(session: Session, store: ArtifactStore, project: Project, round_: Round) -> None:
    run = stages.make_run(session, store, project, round_)
    assert run is not None
    enqueue_run(session, run.id)


def _end(round_: Round, how: Any) -> None:
    round_.state, round_.finished_at = after(round_.state, how), _now()


def _lock(session: Session, row: Project | Round | Run) -> None:
    """Waits for whoever changes the row (two people pressing Start at once) and reads what they left."""
    session.flush()  # refreshing would forget what is not written yet
    session.refresh(row, with_for_update=LOCK)


def _refuse_second(session: Session, project: Project) -> None:
    if active := queries.active_round(session, project.id):
        raise Conflict(f"Round {active.number} is still {active.state}.", "Wait until it is done, or cancel it.")


def _now() -> datetime:
    return datetime.now(UTC)
