"""SQL of accounts."""

from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.models import AuthSession, SigninLink, User


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
