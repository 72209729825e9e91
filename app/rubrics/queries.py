"""SQL of rubrics."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Project, Rubric, User


def newest_published(session: Session, project_id: int) -> Rubric | None:
    published = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    return session.scalars(published.order_by(Rubric.version.desc()).limit(1)).one_or_none()


def published(session: Session, project_id: int, version: int) -> Rubric | None:
    that = select(Rubric).where(Rubric.project_id == project_id, Rubric.version == version)
    return session.scalars(that).one_or_none()


def lock(session: Session, project_id: int) -> None:
    """One admin at a time edits or publishes."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def draft(session: Session, project_id: int) -> Rubric | None:
    the_draft = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_(None))
    return session.scalars(the_draft, execution_options={"populate_existing": True}).one_or_none()


class Version(NamedTuple):
    """A published rubric, who published it, and the judgments made under it."""

    rubric: Rubric
    publisher: str | None
    judgments: int


def versions(session: Session, project_id: int) -> list[Version]:
    """Published versions, newest first."""
    judgments = (
        select(func.count())
        .select_from(Judgment)
        .where(Judgment.rubric_id == Rubric.id, Judgment.superseded_at.is_(None))
        .scalar_subquery()
    )
    rows = session.execute(
        select(Rubric, User.name, judgments)
        .join(User, User.id == Rubric.published_by, isouter=True)
        .where(Rubric.project_id == project_id, Rubric.version.is_not(None))
        .order_by(Rubric.version.desc())
    )
    return [Version(*row) for row in rows]


def user_name(session: Session, user_id: int | None) -> str:
    name = session.scalar(select(User.name).where(User.id == user_id)) if user_id else None
    return name or "Somebody"


def _not_begun(project_id: int) -> list[ColumnElement[bool]]:
    """Open comparisons that nobody has judged (superseded judgments count) or has on the desk."""
    judged = exists().where(Judgment.comparison_id == Comparison.id)
    of_project = Comparison.project_id == project_id, Comparison.state == "open"
    return [*of_project, Comparison.lease_count == 0, ~judged]


def open_comparisons(session: Session, project_id: int) -> tuple[int, int]:
    """(not begun, begun) of the open comparisons: the first would move to a new version."""
    opened = select(func.count()).where(Comparison.project_id == project_id, Comparison.state == "open")
    not_begun = session.scalar(select(func.count()).select_from(Comparison).where(*_not_begun(project_id))) or 0
    return not_begun, (session.scalar(opened) or 0) - not_begun


def move_open_comparisons(session: Session, project_id: int, rubric_id: int) -> int:
    """Puts the comparisons nobody has begun under the rubric; returns how many.

    A labeler who takes one of them meanwhile holds its row; the update then waits, looks again and leaves it alone.
    """
    moved = update(Comparison).where(*_not_begun(project_id), Comparison.rubric_id != rubric_id)
    result = session.execute(
        moved.values(rubric_id=rubric_id).execution_options(synchronize_session=False).returning(Comparison.id)
    )
    return len(result.all())
