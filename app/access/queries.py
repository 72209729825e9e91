"""SQL of sign-ins and membership."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, bindparam, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db import prepared
from app.models import (
    AuthSession,
    Comparison,
    Demonstration,
    DemonstrationTask,
    Project,
    ProjectLabeler,
    ProjectMember,
    User,
)

# ---- who is asking ---------------------------------------------------------------------------------------------------


def _by_session() -> Select[User]:
    of_token = AuthSession.token_hash == bindparam("token_hash"), AuthSession.expires_at > func.now()
    return select(User).join(AuthSession, AuthSession.user_id == User.id).where(*of_token, User.is_active)


_BY_SESSION = prepared(_by_session())


def user_by_session(session: Session, token_hash: str) -> User | None:
    """Return the active user of a sign-in that has not expired."""
    return session.scalars(_BY_SESSION, {"token_hash": token_hash}).one_or_none()


class Offers(NamedTuple):
    """What a project offers its labelers besides comparing, for the navigation.

    to_write: prompts wait for a written answer. written: the user has written some. red_team: there is a model to
    attack. thumbs: labelers rate single responses.
    """

    to_write: bool
    written: bool
    red_team: bool
    thumbs: bool


class Found(NamedTuple):
    """A signed-in user and the project in the address, with two of its `Offers`.

    project: None if there is no such project. row: None if the user is not a member.
    """

    user: User
    project: Project | None
    row: ProjectMember | None
    to_write: bool
    written: bool


def _in_project() -> Select[Any]:
    to_write = exists().where(DemonstrationTask.project_id == Project.id)
    written = exists().where(Demonstration.project_id == Project.id, Demonstration.author_id == User.id)
    own = (ProjectMember.project_id == Project.id) & (ProjectMember.user_id == User.id)
    found = _by_session().add_columns(Project, ProjectMember, to_write, written)
    return found.outerjoin(Project, Project.slug == bindparam("slug")).outerjoin(ProjectMember, own)


_IN_PROJECT = prepared(_in_project())


def member_by_session(session: Session, token_hash: str, slug: str) -> Found | None:
    """Like `user_by_session`, with the user's membership in a project. One statement."""
    row = session.execute(_IN_PROJECT, {"token_hash": token_hash, "slug": slug}).one_or_none()
    return Found(*row) if row else None


# ---- what a user may read --------------------------------------------------------------------------------------------


def projects_of(user_id: int, *roles: str) -> Select[int]:
    """Select ids of the projects that a user is a member of; with roles, only those where they have one of them."""
    mine = select(ProjectMember.project_id).where(ProjectMember.user_id == user_id)
    return mine.where(ProjectMember.roles.overlap(list(roles))) if roles else mine


Number = int | ColumnElement[int] | InstrumentedAttribute[Any]


def is_labeler_of(project_id: Number) -> ColumnElement[bool]:
    """Condition on users: they have the role labeler in the project."""
    of_them = ProjectMember.project_id == project_id, ProjectMember.user_id == User.id
    member = select(ProjectMember.user_id).where(*of_them, ProjectMember.roles.contains(["labeler"]))
    return exists(member.correlate_except(ProjectMember))


def may_label(project_id: Number) -> list[ColumnElement[bool]]:
    """Conditions on users: they are labelers of the project and get tasks there."""
    stopped = exists().where(
        ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id == User.id, ProjectLabeler.state != "active"
    )
    return [
        User.is_active.is_(True),
        is_labeler_of(project_id),
        User.kind != "imported",
        ~stopped.correlate(User, Comparison),
    ]


class Mine(NamedTuple):
    project: Project
    roles: list[str]


def own_projects(session: Session, user_id: int) -> list[Mine]:
    found = select(Project, ProjectMember.roles).join(ProjectMember, ProjectMember.project_id == Project.id)
    return [Mine(*row) for row in session.execute(found.where(ProjectMember.user_id == user_id).order_by(Project.id))]


# ---- members ---------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    user: User
    roles: list[str]
    added_at: datetime


PAGE = 100  # people on one page of a list


def named(text: str) -> ColumnElement[bool]:
    """Condition on users: their name or e-mail address contains the text, ignoring case."""
    return or_(*(func.strpos(func.lower(each), func.lower(text)) > 0 for each in (User.name, User.email)))


def members(session: Session, project_id: int, text: str, page: int) -> tuple[list[Member], int]:
    """Return one page of the members whose name or address contains the text, by name, and the number of
    all matches."""
    joined = ProjectMember.user_id == User.id, ProjectMember.project_id == project_id, named(text)
    n = session.scalar(select(func.count()).select_from(User).where(*joined)) or 0
    found = select(User, ProjectMember.roles, ProjectMember.added_at).where(*joined).order_by(User.name, User.id)
    return [Member(*row) for row in session.execute(found.limit(PAGE).offset(page * PAGE))], n


def lock_member(session: Session, project_id: int, user_id: int) -> ProjectMember | None:
    key = {"project_id": project_id, "user_id": user_id}
    return session.get(ProjectMember, key, with_for_update=True, populate_existing=True)


def add_member(session: Session, project_id: int, user_id: int, roles: Sequence[str], added_by: int | None) -> bool:
    """Add a member; return whether they are new."""
    values = {"project_id": project_id, "user_id": user_id, "roles": list(roles), "added_by": added_by}
    added = insert(ProjectMember).values(values).on_conflict_do_nothing().returning(ProjectMember.user_id)
    return session.scalar(added) is not None


def lock_admins(session: Session, project_ids: Sequence[int]) -> None:
    """Let only one transaction at a time change the admins of these projects. Rows are locked in one order."""
    admins = select(ProjectMember.user_id).where(
        ProjectMember.project_id.in_(project_ids), ProjectMember.roles.contains(["admin"])
    )
    session.execute(admins.order_by(ProjectMember.project_id, ProjectMember.user_id).with_for_update())


def without_other_admin(session: Session, project_ids: Sequence[int], user_id: int) -> list[Project]:
    """Return the given projects in which nobody else is an admin who can sign in."""
    other = exists().where(
        ProjectMember.project_id == Project.id,
        ProjectMember.user_id != user_id,
        ProjectMember.roles.contains(["admin"]),
        User.id == ProjectMember.user_id,
        User.is_active,
    )
    return list(session.scalars(select(Project).where(Project.id.in_(project_ids), ~other).order_by(Project.id)))


def projects_without_members(session: Session) -> list[int]:
    return list(session.scalars(select(Project.id).where(~exists().where(ProjectMember.project_id == Project.id))))


def administrators(session: Session) -> list[int]:
    return list(session.scalars(select(User.id).where(User.is_admin, User.is_active).order_by(User.id)))


def count_administrators(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(User).where(User.is_admin)) or 0
