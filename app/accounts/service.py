"""Accounts: passwords, sign-ins, one-time links, and the audit trail."""

import hashlib
import secrets
import unicodedata
from datetime import UTC, datetime, timedelta

from pwdlib import PasswordHash
from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.accounts import attempts, queries
from app.db import violates
from app.errors import Conflict, Gone, InvalidInput
from app.models import AuditEvent, AuthSession, SigninLink, User
from app.models.user import ROLES

# argon2id with the library's recommended cost.
_passwords = PasswordHash.recommended()
# Verified when there is no such account, so that the answer takes as long as for a real one.
_NOBODY = _passwords.hash(secrets.token_hex(16))
MIN_PASSWORD = 10


def audit(
    session: Session, actor_id: int | None, action: str, project_id: int | None = None, **details: object
) -> None:
    """Records who did what; `details` must be JSON."""
    session.add(AuditEvent(actor_id=actor_id, action=action, project_id=project_id, details=details))


def hash_token(token: str) -> str:
    """What the store keeps of a secret token: its SHA-256. The token is random, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def normal_email(email: str) -> str:
    """An address as it is stored and looked for: without spaces around it, small, in one Unicode form."""
    return unicodedata.normalize("NFC", email.strip().lower())


def _normal_password(password: str) -> str:
    """A keyboard may type `é` as one character or as two."""
    return unicodedata.normalize("NFC", password)


def create_user(
    session: Session, *, email: str, name: str, password: str, roles: list[str], kind: str = "person"
) -> User:
    """Adds an account that can sign in.

    Raises:
        InvalidInput: the address or password cannot be accepted.
        Conflict: the address has an account.
    """
    email = normal_email(email)
    if "@" not in email or len(email) > 254:
        raise InvalidInput(f"“{email[:60]}” is not an e-mail address.", "Enter one like name@example.org.")
    if not name.strip():
        raise InvalidInput("The name is empty.", "Enter the name others will see.")
    _check_roles(roles)
    taken = Conflict(f"{email} has an account already.", "Sign in instead, or use another address.")
    if queries.user_by_email(session, email):  # before the password is hashed, which is dear
        raise taken
    user = User(email=email, name=name.strip(), password_hash=_hash_password(password), roles=roles, kind=kind)
    try:
        with session.begin_nested():  # the constraint decides also between two who come at once
            session.add(user)
            session.flush()
    except IntegrityError as error:
        if not violates(error, "uq_user_account_email"):
            raise
        raise taken from error
    audit(session, user.id, "user.created", roles=roles, kind=kind)
    return user


def _check_roles(roles: list[str]) -> None:
    if unknown := sorted(set(roles) - set(ROLES)):
        raise InvalidInput(f"“{unknown[0]}” is not a role.", f"Roles are {', '.join(ROLES)}.")


def set_password(session: Session, user: User, password: str) -> None:
    """Also ends the user's sign-ins: whoever knew the old password is out."""
    user.password_hash = _hash_password(password)
    queries.delete_sessions_of(session, user.id)
    attempts.forget(session, user.email or "")
    audit(session, user.id, "user.password_set")


def _hash_password(password: str) -> str:
    if len(password) < MIN_PASSWORD:
        raise InvalidInput(
            f"The password has under {MIN_PASSWORD} characters.", "Choose a longer one; a phrase is fine."
        )
    return _passwords.hash(_normal_password(password))


def authenticate(session: Session, email: str, password: str) -> User | None:
    """The active user with this e-mail and password, or none. Count the attempt first: see `app.accounts.attempts`."""
    user = queries.user_by_email(session, normal_email(email))
    known = user is not None and user.is_active and user.password_hash is not None
    kept = user.password_hash if user and known and user.password_hash else _NOBODY
    is_right = _passwords.verify(_normal_password(password), kept)
    if user is None or not known or not is_right:
        return None
    # Hashing takes a while, in which a new password may be set or the account switched off: both end all sign-ins.
    return user if queries.lock_if_unchanged(session, user.id, kept) else None


def open_session(session: Session, user: User, days: int) -> str:
    """Signs a user in; returns the cookie's token, of which only a hash is stored. Sign-ins that expired go."""
    queries.delete_expired_sessions(session)
    token = secrets.token_urlsafe(32)
    expires_at = datetime.now(UTC) + timedelta(days=days)
    session.add(AuthSession(token_hash=hash_token(token), user_id=user.id, expires_at=expires_at))
    return token


def close_session(session: Session, token: str) -> None:
    queries.delete_session(session, hash_token(token))


def create_link(
    session: Session,
    *,
    roles: list[str],
    created_by: int | None,
    days: int,
    user_id: int | None = None,
    kind: str = "person",
) -> str:
    """A one-time link's token. With `user_id` it lets that user set a new password; else it makes a new account.

    Raises:
        InvalidInput: an invitation without a role.
    """
    if not roles and user_id is None:
        raise InvalidInput("No role is chosen.", "Choose at least one role for the person you invite.")
    _check_roles(roles)
    token = secrets.token_urlsafe(24)
    expires_at = datetime.now(UTC) + timedelta(days=days)
    link = SigninLink(
        token_hash=hash_token(token),
        roles=roles,
        kind=kind,
        created_by=created_by,
        user_id=user_id,
        expires_at=expires_at,
    )
    session.add(link)
    audit(session, created_by, "link.created", roles=roles, user_id=user_id, kind=kind)
    return token


def revoke_link(session: Session, actor: User, link_id: int) -> None:
    """Removes a link that was not used.

    Raises:
        Conflict: it was used or revoked in the meantime.
    """
    link = session.get(SigninLink, link_id, with_for_update=True)
    if link is None or link.used_at is not None:
        raise Conflict("This link was used or revoked in the meantime.", "The list below is up to date.")
    session.delete(link)
    audit(session, actor.id, "link.revoked", roles=link.roles, user_id=link.user_id, kind=link.kind)


def open_link(session: Session, token: str) -> SigninLink:
    """The usable link of this token.

    Raises:
        Gone: unknown, used or expired, or whoever made it may no longer make links.
    """
    link = queries.link_by_hash(session, hash_token(token))
    if link is None:
        raise _gone()
    return link


def _gone() -> Gone:
    return Gone("This link was used already, has expired, or never was.", "Ask an admin for a new one.")


def redeem_link(session: Session, token: str, *, email: str, name: str, password: str) -> User:
    """Uses a link once: makes the account it invites to, or sets the password of the one it was made for.

    A password that was set ends all other password links of that person.

    Raises:
        Gone: as for `open_link`; also when another one is used at the same time.
    """
    link = open_link(session, token)
    if link.user_id is not None:
        queries.lock_user(session, link.user_id)  # first: of two links used at once one waits, then finds itself gone
    if queries.lock_link(session, link.id) is None:
        raise _gone()
    link.used_at = datetime.now(UTC)
    if link.user_id is None:
        return create_user(session, email=email, name=name, password=password, roles=list(link.roles), kind=link.kind)
    user = session.get_one(User, link.user_id)
    set_password(session, user, password)
    session.flush()
    _end_links(session, user.id, SigninLink.user_id == user.id)
    return user


def _end_links(session: Session, actor_id: int, *which: ColumnElement[bool]) -> None:
    """Removes those of these links that were not used."""
    if ended := queries.delete_unused_links(session, or_(*which)):
        audit(session, actor_id, "links.ended", links=ended)


def set_roles(session: Session, actor: User, user: User, roles: list[str], *, is_active: bool) -> None:
    """Changes what a person may do. Switching an account off also ends its sign-ins and its password links.

    Links that the person has made end with the right to make them: nobody keeps a way back in.

    Raises:
        Conflict: it would leave no active admin.
    """
    if "admin" in user.roles and ("admin" not in roles or not is_active):
        # Locks all admins' rows, in one order, so that two admins cannot remove each other at the same time.
        admins = select(User.id).where(User.is_active, User.roles.contains(["admin"])).order_by(User.id)
        if not set(session.scalars(admins.with_for_update())) - {user.id}:
            raise Conflict("This is the last admin.", "Make someone else an admin first.")
    user.roles = roles
    user.is_active = is_active
    if not is_active:
        queries.delete_sessions_of(session, user.id)
        _end_links(session, actor.id, SigninLink.user_id == user.id, SigninLink.created_by == user.id)
    elif "admin" not in roles:
        _end_links(session, actor.id, SigninLink.created_by == user.id)
    audit(session, actor.id, "user.roles_set", user_id=user.id, roles=roles, is_active=is_active)


def needs_first_admin(session: Session) -> bool:
    return not session.scalar(select(func.count()).select_from(User).where(User.roles.contains(["admin"])))
