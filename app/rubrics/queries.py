"""SQL of rubrics."""

from typing import NamedTuple

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Project, Rubric, User


def all_published(session: Session, project_id: int) -> list[Rubric]:
    """Return published versions, newest first."""
    found = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    return list(session.scalars(found.order_by(Rubric.version.desc())))


def published(session: Session, project_id: int, version: int) -> Rubric | None:
    that = select(Rubric).where(Rubric.project_id == project_id, Rubric.version == version)
    return session.scalars(that).one_or_none()


def lock(session: Session, project_id: int) -> None:
    """Let only one admin at a time edit or publish."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def draft(session: Session, project_id: int) -> Rubric | None:
    the_draft = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_(None))
    return session.scalars(the_draft, execution_options={"populate_existing": True}).one_or_none()


class Version(NamedTuple):
    """A published rubric, its publisher, and the number of live judgments made under it."""

    rubric: Rubric
    publisher: str | None
    judgments: int


def versions(session: Session, project_id: int) -> list[Version]:
    """Return published versions, newest first."""
    of_project = Rubric.project_id == project_id, Rubric.version.is_not(None)
    ids = select(Rubric.id).where(*of_project)
    # One pass over the judgments, however many versions there are.
    counted = select(Judgment.rubric_id, func.count()).where(Judgment.superseded_at.is_(None))
    judgments = dict(session.execute(counted.where(Judgment.rubric_id.in_(ids)).group_by(Judgment.rubric_id)).all())
    rows = session.execute(
        select(Rubric, User.name)
        .join(User, User.id == Rubric.published_by, isouter=True)
        .where(*of_project)
        .order_by(Rubric.version.desc())
    )
    return [Version(rubric, name, judgments.get(rubric.id, 0)) for rubric, name in rows]


def user_name(session: Session, user_id: int | None) -> str:
    name = session.scalar(select(User.name).where(User.id == user_id)) if user_id else None
    return name or "Somebody"


def not_begun(session: Session, project_id: int, limit: int) -> int:
    """Count open comparisons that a new version will apply to, up to `limit`.

    Nobody has them on the desk or has judged them; superseded judgments count.
    """
    judged = exists().where(Judgment.comparison_id == Comparison.id)
    waiting = select(Comparison.id).where(Comparison.project_id == project_id, Comparison.state == "open")
    waiting = waiting.where(Comparison.lease_count == 0, Comparison.judgment_count == 0, ~judged).limit(limit)
    return session.scalar(select(func.count()).select_from(waiting.subquery())) or 0
