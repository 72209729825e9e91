"""SQL of accounts."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    and_,
    case,
    cast,
    delete,
    exists,
    extract,
    func,
    insert,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Session, aliased

from app.access.queries import PAGE, named, projects_of
from app.models import AuthSession, Project, ProjectMember, SigninFailure, SigninLink, User


def user_by_email(session: Session, email: str) -> User | None:
    return session.scalars(select(User).where(User.email == email)).one_or_none()


def delete_session(session: Session, token_hash: str) -> None:
    session.execute(delete(AuthSession).where(AuthSession.token_hash == token_hash))


def delete_sessions_of(session: Session, user_id: int) -> None:
    session.execute(delete(AuthSession).where(AuthSession.user_id == user_id))


def delete_other_sessions(session: Session, user_id: int, token_hash: str) -> int:
    """Ends a user's sign-ins but this one; returns how many."""
    others = AuthSession.user_id == user_id, AuthSession.token_hash != token_hash
    return len(session.scalars(delete(AuthSession).where(*others).returning(AuthSession.token_hash)).all())


def sessions_of(session: Session, user_id: int) -> list[AuthSession]:
    """A user's sign-ins that last, newest first."""
    lasting = AuthSession.user_id == user_id, AuthSession.expires_at > datetime.now(UTC)
    return list(session.scalars(select(AuthSession).where(*lasting).order_by(AuthSession.created_at.desc()).limit(100)))


def delete_expired_sessions(session: Session) -> None:
    session.execute(delete(AuthSession).where(AuthSession.expires_at < datetime.now(UTC)))


class Failed(NamedTuple):
    n: int
    seconds_ago: float  # since the last failure


class Failures(NamedTuple):
    """Recent failed sign-ins."""

    of_both: Failed  # at this account from this place
    of_account: Failed  # at this account from anywhere
    of_place: Failed  # at any account from this place


def lock_attempts(session: Session) -> None:
    """Let only one transaction at a time count an attempt; it takes a millisecond."""
    session.execute(select(func.pg_advisory_xact_lock(7215003)))


def failures(session: Session, email: str, place: str, window: timedelta) -> Failures:
    at_account, from_place = SigninFailure.email == email, SigninFailure.address == place
    now = func.clock_timestamp()

    def counted(*which: ColumnElement[bool]) -> list[ColumnElement[Any]]:
        ago = extract("epoch", now - func.max(SigninFailure.at).filter(and_(*which)))
        return [func.count().filter(and_(*which)), func.coalesce(cast(ago, Float), 0)]

    columns = [*counted(at_account, from_place), *counted(at_account), *counted(from_place)]
    query = select(*columns).where(or_(at_account, from_place), SigninFailure.at > now - window)
    row = session.execute(query).one()
    return Failures(*(Failed(*row[i : i + 2]) for i in (0, 2, 4)))


def add_failure(session: Session, email: str, place: str) -> None:
    session.execute(insert(SigninFailure).values(email=email, address=place, at=func.clock_timestamp()))


def delete_failures(session: Session, email: str, place: str | None, window: timedelta) -> None:
    """Delete failures of an account, from a place or from anywhere, and everybody's expired failures."""
    of_account = SigninFailure.email == email
    mine = of_account if place is None else and_(of_account, SigninFailure.address == place)
    session.execute(delete(SigninFailure).where(or_(mine, SigninFailure.at < func.now() - window)))


def usable_links() -> Select[SigninLink]:
    """Select unused, unexpired links whose creator may still make them (the command line always may)."""
    maker = aliased(User)
    is_admin_there = exists().where(
        ProjectMember.project_id == SigninLink.project_id,
        ProjectMember.user_id == maker.id,
        ProjectMember.roles.contains(["admin"]),
    )
    rights = or_(maker.is_admin, and_(~SigninLink.is_admin, is_admin_there))
    may = exists().where(maker.id == SigninLink.created_by, maker.is_active, rights)
    return select(SigninLink).where(
        SigninLink.used_at.is_(None),
        SigninLink.expires_at > datetime.now(UTC),
        or_(SigninLink.created_by.is_(None), may),
    )


def link_by_hash(session: Session, token_hash: str) -> SigninLink | None:
    return session.scalars(usable_links().where(SigninLink.token_hash == token_hash)).one_or_none()


def lock_user(session: Session, user_id: int) -> None:
    session.execute(select(User.id).where(User.id == user_id).with_for_update())


def lock_if_unchanged(session: Session, user_id: int, password_hash: str) -> bool:
    """Tell whether the account is still active with this password; if so, lock both until the transaction ends."""
    same = User.id == user_id, User.is_active, User.password_hash == password_hash
    return session.scalar(select(User.id).where(*same).with_for_update(read=True)) is not None


def lock_link(session: Session, link_id: int) -> SigninLink | None:
    """Return the link if it is still usable, locked."""
    found = usable_links().where(SigninLink.id == link_id).with_for_update(of=SigninLink)
    return session.scalars(found.execution_options(populate_existing=True)).one_or_none()


def delete_unused_links(session: Session, *which: ColumnElement[bool]) -> list[int]:
    gone = delete(SigninLink).where(SigninLink.used_at.is_(None), *which).returning(SigninLink.id)
    return list(session.scalars(gone))


def beyond_membership(user_id: int) -> ColumnElement[bool]:
    """Condition on links that this user made and could not make as an admin of their projects alone."""
    theirs = projects_of(user_id, "admin")
    alone = or_(SigninLink.is_admin, SigninLink.project_id.is_(None), SigninLink.project_id.not_in(theirs))
    return and_(SigninLink.created_by == user_id, alone)


def lock_administrators(session: Session) -> list[int]:
    """Return ids of administrators who can sign in, locked in one order."""
    found = select(User.id).where(User.is_active, User.is_admin).order_by(User.id)
    return list(session.scalars(found.with_for_update(key_share=True)))


def people(session: Session) -> list[User]:
    """Return everyone who can sign in, newest last. Imported labelers are on the insights pages instead."""
    return list(session.scalars(select(User).where(User.email.is_not(None)).order_by(User.id)))


def people_named(session: Session, text: str, page: int) -> tuple[list[User], int]:
    """Return one page of the people whose name or address contains the text, and the number of all matches."""
    of_them = User.email.is_not(None), named(text)
    n = session.scalar(select(func.count()).where(*of_them)) or 0
    found = select(User).where(*of_them).order_by(User.id).limit(PAGE).offset(page * PAGE)
    return list(session.scalars(found)), n


class Place(NamedTuple):
    """A project that a person is a member of."""

    slug: str
    name: str
    roles: list[str]


def places(session: Session, user_ids: Collection[int] | None = None) -> dict[int, list[Place]]:
    """Return the projects that these people, or all people, are members of, by the person's id."""
    found: dict[int, list[Place]] = {}
    rows = (
        select(ProjectMember.user_id, Project.slug, Project.name, ProjectMember.roles)
        .join(Project, Project.id == ProjectMember.project_id)
        .order_by(Project.name, Project.id)
    )
    if user_ids is not None:
        rows = rows.where(ProjectMember.user_id.in_(user_ids))
    for user_id, slug, name, roles in session.execute(rows):
        found.setdefault(user_id, []).append(Place(slug, name, roles))
    return found


def projects(session: Session) -> list[Project]:
    """Return all projects, for administrators."""
    return list(session.scalars(select(Project).order_by(Project.name, Project.id)))


def project_by_slug(session: Session, slug: str) -> Project | None:
    return session.scalars(select(Project).where(Project.slug == slug)).one_or_none()


class OpenLink(NamedTuple):
    """A usable link, the person whose password it sets, and who made it; the maker is None for the command line."""

    link: SigninLink
    project: str | None
    person: str | None
    maker: str | None


def open_links(session: Session, project_id: int | None = None) -> list[OpenLink]:
    """Return all usable links, or a project's links as its admins see them: without the names of outsiders."""
    person, maker = aliased(User), aliased(User)
    is_member = exists().where(ProjectMember.project_id == project_id, ProjectMember.user_id == maker.id)
    is_named = or_(maker.id.is_(None), is_member) if project_id is not None else true()
    found = (
        usable_links()
        .add_columns(Project.name, person.name, case((is_named, maker.name), else_="an administrator"))
        .outerjoin(Project, Project.id == SigninLink.project_id)
        .outerjoin(person, person.id == SigninLink.user_id)
        .outerjoin(maker, maker.id == SigninLink.created_by)
    )
    if project_id is not None:
        found = found.where(SigninLink.project_id == project_id)
    return [OpenLink(*row) for row in session.execute(found.order_by(SigninLink.id))]
