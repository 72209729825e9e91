"""Starting, cancelling and retrying rounds. `app.rounds.runs` handles what their runs report.

Each function works in the caller's transaction and never commits, except `promote_waiting`. So a round, its first run
and that run's job appear together or not at all. Rows are locked in one order: run, project, round.
"""

from collections.abc import Sequence

from sqlalchemy.orm import Session, sessionmaker

from app.access import gate_queries
from app.artifacts import ArtifactStore
from app.audit import audit
from app.domain.rounds import ACTIVE, stage_of
from app.errors import Conflict, InvalidInput
from app.models import ModelVersion, Project, Round, Run, User
from app.queue import enqueue_run
from app.rounds import queries, stages
from app.rounds.adoption import adopt, is_busy
from app.rounds.demand import take_suites
from app.rounds.estimates import estimate
from app.rounds.forms import RoundConfig
from app.rounds.freezing import Changed, freeze, record
from app.rounds.model_queries import digests_of
from app.rounds.promotion import promote, waiting
from app.rounds.queries import stored_samples
from app.rounds.readiness import Available, cannot_start, lost_policy, new_judgments, preview
from app.rounds.runs import (
    LOCK,
    end_round,
    enqueue_stage,
    run_cancelled,
    run_failed,
    run_finished,
    run_given_back,
    run_progressed,
    run_started,
)
from app.rounds.sampling import NewSample, store_samples
from app.rounds.stages import Maker, checkpoints_of, output_of, sample_by, samples_of
from app.rows import PromptRow
from app.settings import SamplingServer
from app.suites import service as suites

__all__ = [
    "Available",
    "Changed",
    "NewSample",
    "adopt",
    "adopt_base_model",
    "begin_answer",
    "begin_sampling",
    "cancel",
    "cancel_run",
    "cannot_start",
    "checkpoints_of",
    "digests_of",
    "discard_checkpoints",
    "estimate",
    "freeze",
    "is_busy",
    "lost_policy",
    "new_judgments",
    "output_of",
    "preview",
    "promote_waiting",
    "record",
    "retry",
    "retry_run",
    "run_cancelled",
    "run_failed",
    "run_finished",
    "run_given_back",
    "run_progressed",
    "run_started",
    "samples_of",
    "start",
    "store_samples",
    "stored_samples",
    "take_suites",
]

FIRST_PROMPTS = 200  # prompts sampled before the first round


def start(session: Session, store: ArtifactStore, project: Project, operator: User, config: RoundConfig) -> Round:
    """Add the round and enqueue its first run, in which the worker freezes what the round reads.

    Raises:
        Conflict: a round of the project is active.
        InvalidInput: the project has no policy or too little data (as far as a quick check can tell), the policy's
            LoRA rank is larger than the round's, or the files of its policy or reference are gone.
    """
    _lock(session, project)
    _refuse_second(session, project)
    promote(session, store, project)
    if problem := cannot_start(session, project, config) or lost_policy(session, store, project):
        raise problem
    assert project.policy_id is not None
    past = queries.rounds(session, project.id)
    round_ = Round(
        project_id=project.id,
        number=past[0].number + 1 if past else 1,
        state="freezing",
        algorithm=config.algorithm,
        config=config.model_dump(mode="json"),
        reference_id=project.reference_id or project.policy_id,
        policy_before_id=project.policy_id,
        # Supervised fine-tuning trains no reward model, so the newest existing one measures its policy.
        reward_model_id=queries.newest_reward_model_id(session, project.id) if config.algorithm == "sft" else None,
        started_by=operator.id,
    )
    if config.algorithm == "sft" and round_.reward_model_id is None:
        round_.takes_suites = bool(suites.to_run(session, project.id))
    session.add(round_)
    session.flush()
    audit(
        session,
        operator.id,
        "round.started",
        project.id,
        number=round_.number,
        config=round_.config,
    )
    enqueue_stage(Maker(session, store, project), round_)
    if past:
        # The previous round can no longer be retried, so its checkpoints are not needed.
        for run in queries.runs_of(session, past[0].id):
            store.remove(checkpoints_of(run.id))
    return round_


def begin_sampling(
    session: Session, store: ArtifactStore, project: Project, server: SamplingServer | None = None
) -> Run:
    """Enqueue a run that samples the queue's first comparisons from the current policy, outside any round.

    Raises:
        Conflict: such a run is active, or no rubric is published.
        InvalidInput: the project has no policy or no prompts.
    """
    _lock(session, project)
    if project.policy_id is None:
        raise InvalidInput("The project has no model to sample from.", "Choose a base model in the settings first.")
    if gate_queries.newest_rubric(session, project.id) is None:
        raise Conflict("The project has no published rubric.", "Publish a rubric, so that labelers can judge by it.")
    if any(run.state in ("queued", "running") for run in queries.sampling_runs(session, project.id)):
        raise Conflict("Responses are already being sampled.", "Wait until sampling is done.")
    run = Maker(session, store, project, server).sampling_run(FIRST_PROMPTS)
    enqueue_run(session, run.id)
    return run


def begin_answer(
    session: Session, store: ArtifactStore, project: Project, row: PromptRow, server: SamplingServer | None, ahead: bool
) -> Run:
    """Enqueue a run in which the current policy answers a red-team attempt; `row.id` is the attempt's.

    It opens no comparison and belongs to no round. With `ahead` it goes before all other queued runs.

    Raises:
        InvalidInput: the project has no policy.
    """
    if project.policy_id is None:
        raise InvalidInput("The project has no model that could answer.", "An admin can choose one in the settings.")
    policy = session.get_one(ModelVersion, project.policy_id)
    run = Maker(session, store, project, server).answering_run([row], [policy], "red_team")
    enqueue_run(session, run.id, ahead=ahead)
    return run


def begin_turn(
    session: Session,
    store: ArtifactStore,
    project: Project,
    rows: Sequence[PromptRow],
    models: Sequence[ModelVersion],
    server: SamplingServer | None,
    ahead: bool,
) -> Run:
    """Enqueue a run in which each model of a playground answers each of these prompts; see `queries.store_turn`.

    With `ahead` it goes before all other queued runs.
    """
    run = Maker(session, store, project, server).answering_run(rows, models, "playground")
    enqueue_run(session, run.id, ahead=ahead)
    return run


def adopt_base_model(session: Session, project: Project, base: str, name: str) -> ModelVersion:
    """Register a model as the project's base and first policy. `base` is a location in the store, or a hub name."""
    model = ModelVersion(project_id=project.id, role="base", name=name, base=base)
    session.add(model)
    session.flush()
    project.base_model_id = project.reference_id = project.policy_id = model.id
    return model


def promote_waiting(sessions: sessionmaker[Session], store: ArtifactStore) -> list[str]:
    """Make policies that people now prefer their projects' policies; return their names.

    Commits a transaction for each project, so that nobody waits for another project's row.
    """
    with sessions() as session:
        ids = waiting(session)
    promoted = []
    for project_id in ids:
        with sessions.begin() as session:
            project = session.get_one(Project, project_id, with_for_update=LOCK)
            if model := promote(session, store, project):
                promoted.append(model.name)
    return promoted


# ---- operators' actions on a round -----------------------------------------------------------------------------------


def cancel(session: Session, round_: Round, actor: User) -> None:
    """End a round: at once if its run is queued, or at the run's next heartbeat if it is running. Saved models stay.

    Raises:
        Conflict: it has already ended, or was retried at this moment.
    """
    # If a run ended while this waited for its row, the same commit added the next stage's run. The first statement
    # cannot see that run, but a second one can.
    unfinished = queries.unfinished_runs(session, round_.id) or queries.unfinished_runs(session, round_.id)
    _lock(session, round_)
    if round_.state not in ACTIVE:
        raise Conflict(f"Round {round_.number} is already {round_.state}.", "There is nothing to cancel.")
    # runs must be locked before their round, so it is too late to lock this one
    if not unfinished and queries.has_unfinished_run(session, round_.id):
        raise Conflict(
            f"Somebody retried round {round_.number} at the same moment.",
            "Cancel it again to end it.",
        )
    audit(session, actor.id, "round.cancelled", round_.project_id, number=round_.number)
    for run in unfinished:
        _cancel(session, run)
    if not unfinished:
        end_round(round_, "cancelled")


def cancel_run(session: Session, run: Run, actor: User) -> None:
    """End a sampling run outside a round; what it has stored stays."""
    _lock(session, run)
    if run.state not in ("queued", "running"):
        raise Conflict(f"This run has already {run.state}.", "There is nothing to cancel.")
    audit(session, actor.id, "run.cancelled", run.project_id, run=run.id)
    _cancel(session, run)


def _cancel(session: Session, run: Run) -> None:
    run.cancel_requested = True
    if run.state == "queued":  # the worker finds the run cancelled and does nothing
        run_cancelled(session, run)


def retry(
    session: Session, store: ArtifactStore, round_: Round, actor: User, server: SamplingServer | None = None
) -> None:
    """Repeat the stage in which a round failed. Results of earlier stages and stored samples are kept.

    Raises:
        Conflict: the round has not failed, is not the newest, or another one is active.
        InvalidInput: what the stage lacked is still missing.
    """
    project = session.get_one(Project, round_.project_id)
    _lock(session, project)
    _lock(session, round_)
    if round_.state != "failed":
        raise Conflict(f"Round {round_.number} is {round_.state}, not failed.", "Only a failed round can be retried.")
    _refuse_second(session, project)
    if queries.rounds(session, project.id)[0].id != round_.id:
        raise Conflict("A newer round has been run since.", "Start a new round. It reads the newer judgments too.")
    runs = queries.runs_of(session, round_.id)
    done = {stage_of(run.kind) for run in runs if run.state == "succeeded"}
    round_.state = next(stage for stage in stages.plan_of(round_) if stage not in done)
    round_.error = round_.finished_at = None
    audit(session, actor.id, "round.retried", project.id, number=round_.number, stage=round_.state)
    if failed := [run for run in runs if run.state == "failed"]:
        _requeue(session, failed[-1], server)
    else:  # it failed before the stage's run could be created
        enqueue_stage(Maker(session, store, project, server), round_)


def discard_checkpoints(session: Session, store: ArtifactStore, round_: Round, actor: User) -> None:
    """Delete a failed round's checkpoints to free disk space. A retry then begins its stage from the start.

    Raises:
        Conflict: the round has not failed.
    """
    _lock(session, round_)  # a retry waits for this, so it reads nothing half deleted
    if round_.state != "failed":
        raise Conflict(f"Round {round_.number} is {round_.state}, not failed.", "Its checkpoints may be in use.")
    for run in queries.runs_of(session, round_.id):
        store.remove(checkpoints_of(run.id))
    audit(session, actor.id, "round.checkpoints_discarded", round_.project_id, number=round_.number)


def retry_run(session: Session, run: Run, actor: User, server: SamplingServer | None = None) -> None:
    """Repeat a failed or cancelled sampling run outside a round; samples it has stored are kept."""
    _lock(session, run)
    if run.state not in ("failed", "cancelled") or run.round_id is not None:
        raise Conflict("This run cannot be retried.", "Only a failed sampling run can be retried.")
    audit(session, actor.id, "run.retried", run.project_id, run=run.id)
    _requeue(session, run, server)


def _requeue(session: Session, run: Run, server: SamplingServer | None) -> None:
    if run.kind == "sample":
        sample_by(run, server)
    run.state, run.attempts, run.attempts_since_checkpoint, run.cancel_requested = "queued", 0, 0, False
    run.error, run.finished_at, run.started_at, run.heartbeat_at = None, None, None, None
    run.progress_done, run.progress_total, run.progress_message = 0, 0, ""
    enqueue_run(session, run.id)


def _lock(session: Session, row: Project | Round | Run) -> None:
    """Wait for other transactions that change the row (two people pressing Start at once), then reload it."""
    session.flush()  # refreshing would lose unsaved changes
    session.refresh(row, with_for_update=LOCK)


def _refuse_second(session: Session, project: Project) -> None:
    if active := queries.active_round(session, project.id):
        raise Conflict(f"Round {active.number} is still {active.state}.", "Wait until it is done, or cancel it.")
