"""SQL of accounts."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Float, Select, and_, cast, delete, exists, extract, func, insert, or_, select
from sqlalchemy.orm import Session, aliased

from app.models import AuthSession, SigninFailure, SigninLink, User


def user_by_email(session: Session, email: str) -> User | None:
    return session.scalars(select(User).where(User.email == email)).one_or_none()


def user_by_session(session: Session, token_hash: str) -> User | None:
    """The active user of a sign-in that has not expired."""
    found = (
        select(User)
        .join(AuthSession, AuthSession.user_id == User.id)
        .where(AuthSession.token_hash == token_hash, AuthSession.expires_at > datetime.now(UTC), User.is_active)
    )
    return session.scalars(found).one_or_none()


def delete_session(session: Session, token_hash: str) -> None:
    session.execute(delete(AuthSession).where(AuthSession.token_hash == token_hash))


def delete_sessions_of(session: Session, user_id: int) -> None:
    session.execute(delete(AuthSession).where(AuthSession.user_id == user_id))


def delete_expired_sessions(session: Session) -> None:
    session.execute(delete(AuthSession).where(AuthSession.expires_at < datetime.now(UTC)))


class Failed(NamedTuple):
    n: int
    seconds_ago: float  # the last one


class Failures(NamedTuple):
    """Sign-ins that failed lately."""

    of_both: Failed  # at this account from this place
    of_account: Failed  # from anywhere
    of_place: Failed  # at any account


def lock_attempts(session: Session) -> None:
    """Lets one transaction at a time count an attempt; it takes a millisecond."""
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
    """Those of an account, from a place or from anywhere, and everybody's that count no more."""
    of_account = SigninFailure.email == email
    mine = of_account if place is None else and_(of_account, SigninFailure.address == place)
    session.execute(delete(SigninFailure).where(or_(mine, SigninFailure.at < func.now() - window)))


def usable_links() -> Select[SigninLink]:
    """Links that were not used, have not expired, and whose maker may still make them (the command line always may)."""
    maker = aliased(User)
    may = exists().where(maker.id == SigninLink.created_by, maker.is_active, maker.roles.contains(["admin"]))
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
    """Whether the account is still active and has this password; if so, both stay until the transaction ends."""
    same = User.id == user_id, User.is_active, User.password_hash == password_hash
    return session.scalar(select(User.id).where(*same).with_for_update(read=True)) is not None


def lock_link(session: Session, link_id: int) -> SigninLink | None:
    """The link, if it is still usable, for one transaction at a time."""
    found = usable_links().where(SigninLink.id == link_id).with_for_update(of=SigninLink)
    return session.scalars(found.execution_options(populate_existing=True)).one_or_none()


def delete_unused_links(session: Session, *which: ColumnElement[bool]) -> list[int]:
    gone = delete(SigninLink).where(SigninLink.used_at.is_(None), *which).returning(SigninLink.id)
    return list(session.scalars(gone))


def people(session: Session) -> list[User]:
    """Everyone who can sign in, newest last. Imported labelers are on the insights pages instead."""
    return list(session.scalars(select(User).where(User.email.is_not(None)).order_by(User.id)))


def open_links(session: Session) -> list[SigninLink]:
    return list(session.scalars(usable_links().order_by(SigninLink.id)))
