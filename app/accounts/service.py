"""Accounts: passwords, sign-ins, one-time links, and who can sign in."""

import secrets
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from pwdlib import PasswordHash
from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.access import members
from app.access import queries as access_queries
from app.access.sessions import hash_token
from app.accounts import attempts, queries
from app.audit import audit
from app.db import violates
from app.errors import Conflict, Gone, InvalidInput, NotFound
from app.form_fields import one_line
from app.models import AuthSession, SigninLink, User
from app.models.member import ROLES

# argon2id with the library's recommended cost.
_passwords = PasswordHash.recommended()
# Verified when there is no such account, so that the answer takes as long as for a real one.
_NOBODY = _passwords.hash(secrets.token_hex(16))
MIN_PASSWORD = 10


def normal_email(email: str) -> str:
    """Normalize an address for storing and lookup: no surrounding spaces or invisible characters, lower case, Unicode
    NFC.

    This way nobody can have an address that looks like another person's.
    """
    return unicodedata.normalize("NFC", one_line(email).lower())


def by_address(session: Session, email: str) -> User:
    """Return the account with this address.

    Raises:
        NotFound: no account that can sign in has it.
    """
    user = queries.user_by_email(session, normal_email(email))
    if user is None or not user.is_active:
        raise NotFound("No account has this address.", "Check it, or invite the person by a link.")
    return user


def _normal_password(password: str) -> str:
    """Normalize to NFC: a keyboard may type `é` as one character or as two."""
    return unicodedata.normalize("NFC", password)


def create_user(session: Session, *, email: str, name: str, password: str, kind: str = "person") -> User:
    """Add an account that can sign in. It has no access yet: see `app.access.members.join`, `make_administrator`.

    Raises:
        InvalidInput: the address or password cannot be accepted.
        Conflict: the address has an account.
    """
    email = normal_email(email)
    if "@" not in email or " " in email or not email.isprintable() or len(email) > 254:
        raise InvalidInput(f"“{email[:60]}” is not an e-mail address.", "Enter one like name@example.org.")
    if not name.strip():
        raise InvalidInput("The name is empty.", "Enter the name others will see.")
    taken = Conflict(f"{email} already has an account.", "Sign in instead, or use another address.")
    if queries.user_by_email(session, email):  # before hashing the password, which is expensive
        raise taken
    user = User(email=email, name=name.strip(), password_hash=_hash_password(password), kind=kind)
    try:
        with session.begin_nested():  # the constraint also decides between two simultaneous requests
            session.add(user)
            session.flush()
    except IntegrityError as error:
        if not violates(error, "uq_user_account_email"):
            raise
        raise taken from error
    audit(session, user.id, "user.created", kind=kind)
    return user


def make_administrator(session: Session, user: User, actor_id: int | None) -> None:
    """Make somebody an administrator of the service.

    The first administrator also becomes a member, with all roles, of every project without members. Otherwise nobody
    could open these projects.
    """
    is_first = not access_queries.count_administrators(session)
    user.is_admin = True
    session.flush()
    audit(session, actor_id, "user.administrator_made", user_id=user.id)
    for project_id in access_queries.projects_without_members(session) if is_first else ():
        members.join(session, project_id, user.id, ROLES, actor_id)


def set_password(session: Session, user: User, password: str) -> None:
    """Set a password and end the user's sign-ins, so anybody who knew the old password is out."""
    user.password_hash = _hash_password(password)
    queries.delete_sessions_of(session, user.id)
    attempts.forget(session, user.email or "")
    audit(session, user.id, "user.password_set")


def rename(session: Session, user: User, name: str) -> None:
    """Changes the name that others see.

    Raises:
        InvalidInput: it is empty.
    """
    if not name:
        raise InvalidInput("The name is empty.", "Enter the name others will see.")
    if name != user.name:
        user.name = name
        audit(session, user.id, "user.renamed", user_id=user.id)


def change_password(session: Session, user: User, current: str, new: str) -> None:
    """As `set_password`, for somebody who knows the current one. Count the attempt first: see `app.accounts.attempts`.

    Raises:
        InvalidInput: the current password is wrong, or the new one is too short.
    """
    if authenticate(session, user.email or "", current) is None:
        raise InvalidInput("The current password is wrong.", "Type it again, or ask an administrator for a new link.")
    set_password(session, user, new)


def end_other_sessions(session: Session, user: User, token: str) -> int:
    """Signs the user out of every other browser; returns of how many."""
    ended = queries.delete_other_sessions(session, user.id, hash_token(token))
    if ended:
        audit(session, user.id, "user.sessions_ended", sessions=ended)
    return ended


def _hash_password(password: str) -> str:
    if len(password) < MIN_PASSWORD:
        raise InvalidInput(
            f"The password has fewer than {MIN_PASSWORD} characters.", "Choose a longer password; a phrase is fine."
        )
    return _passwords.hash(_normal_password(password))


def authenticate(session: Session, email: str, password: str) -> User | None:
    """Return the active user with this e-mail and password, or None.

    Count the attempt first: see `app.accounts.attempts`.
    """
    user = queries.user_by_email(session, normal_email(email))
    known = user is not None and user.is_active and user.password_hash is not None
    kept = user.password_hash if user and known and user.password_hash else _NOBODY
    is_right = _passwords.verify(_normal_password(password), kept)
    if user is None or not known or not is_right:
        return None
    # While the hash was computed, a new password may have been set or the account switched off. Both end all sign-ins.
    return user if queries.lock_if_unchanged(session, user.id, kept) else None


def open_session(session: Session, user: User, days: int) -> str:
    """Sign a user in; return the cookie's token, of which only a hash is stored. Expired sign-ins are deleted."""
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
    created_by: int | None,
    days: int,
    project_id: int | None = None,
    roles: Collection[str] = (),
    is_admin: bool = False,
    user_id: int | None = None,
    kind: str = "person",
) -> str:
    """Create a one-time link and return its token.

    With `user_id`, the link lets that user set a new password. Otherwise it creates a new account, or adds to the
    account of somebody who has one.

    Args:
        roles: the roles it gives in the project, at least one.
        is_admin: whoever uses it becomes an administrator of the service.
        kind: the kind of the account it creates.

    Raises:
        InvalidInput: a project without a role, or roles without a project.
    """
    if roles and project_id is None:
        raise InvalidInput("Roles belong to a project, and no project is chosen.", "Choose the project, or no role.")
    given = [] if project_id is None else members.in_order(roles)
    token = secrets.token_urlsafe(24)
    what: dict[str, Any] = {"roles": given, "is_admin": is_admin, "user_id": user_id, "kind": kind}
    expires_at = datetime.now(UTC) + timedelta(days=days)
    session.add(
        SigninLink(
            token_hash=hash_token(token), project_id=project_id, created_by=created_by, expires_at=expires_at, **what
        )
    )
    audit(session, created_by, "link.created", project_id, **what)
    return token


def revoke_link(session: Session, actor: User, link_id: int, project_id: int | None = None) -> None:
    """Delete an unused link.

    Args:
        project_id: accept only a link that invites to this project.

    Raises:
        Conflict: it was used or revoked in the meantime, or never existed.
    """
    link = session.get(SigninLink, link_id, with_for_update=True)
    if link is None or link.used_at is not None or project_id not in (None, link.project_id):
        raise Conflict("This link was used or revoked in the meantime.", "The list below is up to date.")
    session.delete(link)
    details = {"roles": link.roles, "is_admin": link.is_admin, "user_id": link.user_id, "kind": link.kind}
    audit(session, actor.id, "link.revoked", link.project_id, **details)


def open_link(session: Session, token: str) -> SigninLink:
    """Return the usable link of this token.

    Raises:
        Gone: unknown, used or expired, or its creator may no longer make links.
    """
    link = queries.link_by_hash(session, hash_token(token))
    if link is None:
        raise _gone()
    return link


def _gone() -> Gone:
    return Gone("This link was already used, has expired, or never existed.", "Ask for a new link.")


def redeem_link(session: Session, token: str, *, email: str, name: str, password: str) -> User:
    """Use a link once: create the account it invites to, or set the password of the user it was made for.

    Setting a password ends all other password links of that person.

    Raises:
        Gone: as for `open_link`, and if another password link of the same person is used at the same time.
    """
    link = open_link(session, token)
    if link.user_id is not None:
        # first: of two password links used at once, the second waits here and is then gone
        queries.lock_user(session, link.user_id)
    link = _use(session, link)
    if link.user_id is None:
        user = create_user(session, email=email, name=name, password=password, kind=link.kind)
        _give(session, link, user)
        return user
    user = session.get_one(User, link.user_id)
    set_password(session, user, password)
    session.flush()
    _end_links(session, user.id, SigninLink.user_id == user.id)
    return user


def accept_link(session: Session, token: str, user: User) -> None:
    """Use an invitation for somebody who has an account: its roles and rights are added to theirs.

    Raises:
        Gone: as for `redeem_link`.
        Conflict: it is not an invitation, or it is for another kind of account.
    """
    link = open_link(session, token)
    if link.user_id is not None or not (link.project_id or link.is_admin):
        raise Conflict("This link is not for the account you are signed in with.", "Sign out and open it again.")
    if link.kind != user.kind:
        raise Conflict("This link is for another kind of account than yours.", "Sign out and open it again.")
    _give(session, _use(session, link), user)


def _use(session: Session, link: SigninLink) -> SigninLink:
    locked = queries.lock_link(session, link.id)
    if locked is None:
        raise _gone()
    locked.used_at = datetime.now(UTC)
    return locked


def _give(session: Session, link: SigninLink, user: User) -> None:
    if link.is_admin and not user.is_admin:
        make_administrator(session, user, link.created_by)
    if link.project_id is not None:
        members.join(session, link.project_id, user.id, link.roles, link.created_by)


def _end_links(session: Session, actor_id: int, *which: ColumnElement[bool]) -> None:
    """Delete the links that match and are unused."""
    if ended := queries.delete_unused_links(session, or_(*which)):
        audit(session, actor_id, "links.ended", links=ended)


def end_invitations(session: Session, actor_id: int, project_id: int, user_id: int) -> None:
    """Delete the unused links to a project that were made by somebody who may no longer make them."""
    _end_links(session, actor_id, and_(SigninLink.project_id == project_id, SigninLink.created_by == user_id))


def set_account(session: Session, actor: User, user: User, *, is_admin: bool, is_active: bool) -> None:
    """Set whether somebody is an administrator of the service, and whether they can sign in.

    Switching an account off also ends its sign-ins and its password links. When a person loses the right to make links,
    the links they made end too, so nobody keeps a way back in.

    Raises:
        Conflict: it would leave no administrator, or a project without an admin who can sign in.
    """
    if not is_active:
        theirs = list(session.scalars(access_queries.projects_of(user.id, "admin")))
        access_queries.lock_admins(session, theirs)
        members.require_other_admin(session, theirs, user.id)
    stays = not user.is_admin or (is_admin and is_active)
    # Lock their rows, so that two administrators cannot remove each other at the same time.
    if not stays and not set(queries.lock_administrators(session)) - {user.id}:
        raise Conflict("This is the last administrator.", "Make someone else an administrator first.")
    user.is_admin, user.is_active = is_admin, is_active
    session.flush()
    if not is_active:
        queries.delete_sessions_of(session, user.id)
        _end_links(session, actor.id, SigninLink.user_id == user.id, SigninLink.created_by == user.id)
    elif not is_admin:
        _end_links(session, actor.id, queries.beyond_membership(user.id))
    audit(session, actor.id, "user.account_set", user_id=user.id, is_admin=is_admin, is_active=is_active)


def needs_first_admin(session: Session) -> bool:
    return not access_queries.count_administrators(session)
