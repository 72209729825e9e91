"""SQL of projects."""

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, cast, delete, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.access.queries import projects_of
from app.models import (
    AuditEvent,
    Comparison,
    DemonstrationTask,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    Metric,
    ModelVersion,
    Project,
    ProjectLabeler,
    ProjectMember,
    Prompt,
    QueuePlace,
    Round,
    Rubric,
    Run,
    SigninLink,
    Snapshot,
    User,
)
from app.models.round import ACTIVE_ROUND

STAFF = ("admin", "operator")  # who may look at a project's models
# Rows that a new project has, and its failed runs, in an order that foreign keys allow to delete.
SET_UP: tuple[type[Any], ...] = (
    DemonstrationTask,
    Prompt,
    Run,
    Round,
    ModelVersion,
    Rubric,
    LabelerGroup,
    ProjectLabeler,
    QueuePlace,
    SigninLink,
    ProjectMember,
    AuditEvent,
)


def by_slug(session: Session, slug: str) -> Project | None:
    return session.scalars(select(Project).where(Project.slug == slug)).one_or_none()


def base_models(session: Session, user_id: int) -> list[str]:
    """Locations of the base models of the projects whose models the user may look at."""
    theirs = select(ModelVersion.base).where(ModelVersion.project_id.in_(projects_of(user_id, *STAFF)))
    return list(session.scalars(theirs.where(ModelVersion.role == "base").distinct().order_by(ModelVersion.base)))


def may_read_run(session: Session, user_id: int, run_id: int) -> bool:
    """Whether the run is one of a project whose models the user may look at."""
    theirs = Run.id == run_id, Run.project_id.in_(projects_of(user_id, *STAFF))
    return bool(session.scalar(select(exists().where(*theirs))))


def has_used_model(session: Session, project_id: int) -> bool:
    """Whether a run of the project has worked with its models, or may do so any moment. What failed has not."""
    at_work = Run.state.in_(("queued", "running", "succeeded"))
    return bool(session.scalar(select(exists().where(Run.project_id == project_id, Run.kind != "freeze", at_work))))


def is_working(session: Session, project_id: int) -> bool:
    """Whether a round is under way, or a run waits or works."""
    unfinished = exists().where(Run.project_id == project_id, Run.state.in_(("queued", "running")))
    active = exists().where(Round.project_id == project_id, text(ACTIVE_ROUND))
    return bool(session.scalar(select(unfinished | active)))


def delete_empty(session: Session, project_id: int) -> None:
    """Deletes a project with what was set up in it and what failed. Whatever else belongs to it refuses by its foreign
    key (IntegrityError)."""
    session.execute(text("SET LOCAL prefloop.deletes_project = 'yes'"))
    session.flush()
    quietly = {"synchronize_session": False}
    groups = select(LabelerGroup.id).where(LabelerGroup.project_id == project_id)
    runs = select(Run.id).where(Run.project_id == project_id)
    session.execute(
        update(Project).where(Project.id == project_id).values(base_model_id=None, reference_id=None, policy_id=None),
        execution_options=quietly,
    )
    session.execute(
        delete(LabelerGroupMember).where(LabelerGroupMember.group_id.in_(groups)), execution_options=quietly
    )
    session.execute(delete(Metric).where(Metric.run_id.in_(runs)), execution_options=quietly)
    for table in SET_UP:
        session.execute(delete(table).where(table.project_id == project_id), execution_options=quietly)
    session.execute(delete(Project).where(Project.id == project_id), execution_options=quietly)
    session.execute(text("SET LOCAL prefloop.deletes_project = 'no'"))


class Counts(NamedTuple):
    """How much there is, for staff."""

    states: dict[str, int]  # comparisons by state
    judgments: int
    labelers: int

    @property
    def decided(self) -> int:
        return self.states.get("settled", 0) + self.states.get("adjudicated", 0)


class Overview(NamedTuple):
    """What the project's start page shows.

    Attributes:
        runs: unfinished, oldest first.
        read_by_last: comparisons that the newest round read; 0 before it has frozen them.
        rubric_version: the newest one published; 0: none.
        has_others: whether the project has a second member.
    """

    runs: list[Run]
    last_round: Round | None
    policy: ModelVersion | None
    has_prompts: bool
    read_by_last: int
    rubric_version: int
    has_others: bool


def overview(session: Session, project: Project) -> Overview:
    unfinished = select(Run).where(Run.project_id == project.id, Run.state.in_(("queued", "running"))).order_by(Run.id)
    newest = (
        select(Round, Snapshot.counts)
        .outerjoin(Snapshot, Snapshot.id == Round.snapshot_id)
        .where(Round.project_id == project.id)
        .order_by(Round.number.desc())
        .limit(1)
    )
    last_round, read = session.execute(newest).one_or_none() or (None, None)
    version = select(func.coalesce(func.max(Rubric.version), 0)).where(Rubric.project_id == project.id)
    members = select(ProjectMember.user_id).where(ProjectMember.project_id == project.id).limit(2).subquery()
    found = select(
        exists().where(Prompt.project_id == project.id),
        version.scalar_subquery(),
        select(func.count()).select_from(members).scalar_subquery(),
    )
    has_prompts, rubric_version, n_members = session.execute(found).one()
    return Overview(
        runs=list(session.scalars(unfinished)),
        last_round=last_round,
        policy=session.get(ModelVersion, project.policy_id) if project.policy_id else None,
        has_prompts=has_prompts,
        read_by_last=sum((read or {}).get(part, 0) for part in ("train", "heldout")),
        rubric_version=rubric_version,
        has_others=n_members > 1,
    )


def counts(session: Session, project_id: int) -> Counts:
    """Costs O(comparisons + judgments): see `app.cache`.

    Labelers do not see it: it changes with each of their answers, by how others have answered, and not with those to
    calibration items.
    """
    # Calibration items and repeats are no work that waits, nor any that was done.
    measures = or_(Comparison.gold.is_not(None), Comparison.purpose == "repeat")
    of_state = (
        select(
            Comparison.state,
            func.count().filter(~measures),
            cast(func.coalesce(func.sum(Comparison.judgment_count), 0), BigInteger),
        )
        .where(Comparison.project_id == project_id)
        .group_by(Comparison.state)
    )
    found = session.execute(of_state).all()
    labelers = (
        select(Judgment.labeler_id)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Judgment.superseded_at.is_(None))
        .distinct()  # counted outside: count(DISTINCT) would sort all judgments
    )
    return Counts(
        states={state: n for state, n, _ in found if n},
        judgments=sum(judgments for state, _, judgments in found if state != "withdrawn"),
        labelers=session.scalar(select(func.count()).select_from(labelers.subquery())) or 0,
    )


def paused_by_calibration(session: Session, project_id: int) -> list[User]:
    """Labelers whom the service itself has paused, the last one first: an admin has to look at them."""
    paused = (
        select(User)
        .join(ProjectLabeler, ProjectLabeler.labeler_id == User.id)
        .where(ProjectLabeler.project_id == project_id, ProjectLabeler.state == "paused")
        .where(ProjectLabeler.changed_by.is_(None))
        .order_by(ProjectLabeler.changed_at.desc())
    )
    return list(session.scalars(paused))
