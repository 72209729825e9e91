"""SQL of accounts."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import Session

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


class Failures(NamedTuple):
    """Wrong passwords since a moment."""

    of_both: int  # for this account from this address
    of_account: int  # from anywhere
    of_address: int  # for any account


def failures(session: Session, email: str, address: str, since: datetime) -> Failures:
    def counted(*which: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count().filter(and_(*which))

    account, place = SigninFailure.email == email, SigninFailure.address == address
    query = select(counted(account, place), counted(account), counted(place))
    return Failures(*session.execute(query.where(or_(account, place), SigninFailure.at > since)).one())


def delete_failures(session: Session, email: str, before: datetime) -> None:
    """Those of an account, and everybody's that are older."""
    session.execute(delete(SigninFailure).where(or_(SigninFailure.email == email, SigninFailure.at < before)))


def link_by_hash(session: Session, token_hash: str) -> SigninLink | None:
    return session.scalars(
        select(SigninLink).where(SigninLink.token_hash == token_hash).with_for_update()
    ).one_or_none()


def people(session: Session) -> list[User]:
    """Everyone who can sign in, newest last. Imported labelers are on the insights pages instead."""
    return list(session.scalars(select(User).where(User.email.is_not(None)).order_by(User.id)))


def open_links(session: Session) -> list[SigninLink]:
    usable = select(SigninLink).where(SigninLink.used_at.is_(None), SigninLink.expires_at > datetime.now(UTC))
    return list(session.scalars(usable.order_by(SigninLink.id)))
