"""SQL of projects."""

from typing import NamedTuple

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from app.access.queries import projects_of
from app.models import Comparison, Judgment, ModelVersion, Project, ProjectLabeler, Prompt, Round, Run, User

STAFF = ("admin", "operator")  # who may look at a project's models


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


class Overview(NamedTuple):
    """What the project's start page shows; states, judgments and labelers to staff only."""

    states: dict[str, int]  # comparisons by state
    judgments: int
    labelers: int
    runs: list[Run]  # unfinished, oldest first
    last_round: Round | None
    policy: ModelVersion | None
    has_prompts: bool


def overview(session: Session, project: Project, *, counted: bool) -> Overview:
    """What the start page shows.

    Args:
        counted: with how many comparisons are in which state, and how many judgments there are. Labelers do not see
            that: it changes with each of their answers, by how others have answered, and not with those to calibration
            items.
    """
    states, judgments, labelers = _counts(session, project) if counted else ({}, 0, 0)
    unfinished = select(Run).where(Run.project_id == project.id, Run.state.in_(("queued", "running"))).order_by(Run.id)
    last_round = select(Round).where(Round.project_id == project.id).order_by(Round.number.desc()).limit(1)
    return Overview(
        states=states,
        judgments=judgments,
        labelers=labelers,
        runs=list(session.scalars(unfinished)),
        last_round=session.scalars(last_round).one_or_none(),
        policy=session.get(ModelVersion, project.policy_id) if project.policy_id else None,
        has_prompts=bool(session.scalar(select(exists().where(Prompt.project_id == project.id)))),
    )


def _counts(session: Session, project: Project) -> tuple[dict[str, int], int, int]:
    # Calibration items and repeats are no work that waits, nor any that was done.
    measures = or_(Comparison.gold.is_not(None), Comparison.purpose == "repeat")
    states = select(Comparison.state, func.count()).where(Comparison.project_id == project.id, ~measures)
    judged = (
        select(func.count(), func.count(Judgment.labeler_id.distinct()))
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project.id, Comparison.state != "withdrawn", Judgment.superseded_at.is_(None))
    )
    judgments, labelers = session.execute(judged).one()
    return dict(session.execute(states.group_by(Comparison.state)).all()), judgments, labelers


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
