"""SQL of the gate before every task: the labeler's row, the newest rubric, and the labeler's state in the project."""

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, BindParameter, ColumnElement, Select, bindparam, exists, func, select
from sqlalchemy.orm import Session, aliased

from app.db import prepared
from app.models import ProjectLabeler, ProjectMember, Qualification, Rubric, User


def quiz_version(rubric: type[Rubric]) -> ColumnElement[int]:
    """The number of the version whose quiz counts for this version."""
    return func.coalesce(rubric.quiz_of_version, rubric.version)


def newest_published(project_id: int | BindParameter[int]) -> Select[Any]:
    published = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    return published.order_by(Rubric.version.desc()).limit(1)


def lock_labeler(session: Session, labeler_id: int) -> bool:
    """Serialize the requests of one labeler, from two tabs or a double click. Take this lock before any other.

    Returns whether there is such a user.
    """
    wanted = select(User.id).where(User.id == labeler_id).with_for_update(key_share=True)
    return session.scalar(wanted) is not None


def newest_rubric(session: Session, project_id: int) -> Rubric | None:
    """Return the rubric version in use; None before the first is published."""
    return session.scalars(newest_published(project_id)).one_or_none()


def _requires_quiz(project_id: BindParameter[int], labeler_id: BindParameter[int]) -> Select[Any]:
    newest = aliased(Rubric, newest_published(project_id).subquery())
    passed = (
        exists()
        .where(Qualification.labeler_id == labeler_id, Qualification.passed.is_(True))
        .where(Rubric.id == Qualification.rubric_id)
        .where(Rubric.project_id == project_id, quiz_version(Rubric) == quiz_version(newest))
    )
    return select((func.jsonb_array_length(newest.quiz) > 0) & ~passed)


class Gate(NamedTuple):
    """is_labeler: they are a member with that role. state, reason: see ProjectLabeler. needs_quiz: the newest version
    has a quiz that the labeler has not passed."""

    is_labeler: bool
    state: str
    reason: str
    needs_quiz: bool


def standing_of(project_id: BindParameter[int], labeler_id: BindParameter[int]) -> list[ColumnElement[Any]]:
    """Return the columns of a `Gate`, for a statement that reads something else too."""
    own = ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id == labeler_id
    member = ProjectMember.project_id == project_id, ProjectMember.user_id == labeler_id
    return [
        exists().where(*member, ProjectMember.roles.contains(["labeler"])),
        func.coalesce(select(ProjectLabeler.state).where(*own).scalar_subquery(), "active"),
        func.coalesce(select(ProjectLabeler.reason).where(*own).scalar_subquery(), ""),
        func.coalesce(_requires_quiz(project_id, labeler_id).scalar_subquery(), False),
    ]


# Built once, because every task that is handed out runs it.
_GATE = prepared(
    select(*standing_of(bindparam("project_id", type_=BigInteger), bindparam("labeler_id", type_=BigInteger)))
)


def gate(session: Session, project_id: int, labeler_id: int) -> Gate:
    """Return a labeler's gate in a project. One query, by index."""
    return Gate(*session.execute(_GATE, {"project_id": project_id, "labeler_id": labeler_id}).one())
