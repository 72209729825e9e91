"""People (and other judges), their sessions, one-time links, and the audit trail."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now, one_of
from app.models.member import known_roles

# Judgments are never taken for a person's when they are not: whoever judged is one of these.
USER_KINDS = ("person", "imported", "simulated", "ai_judge")


class User(Base):
    """Someone who judges or runs things. `imported` labelers come with data and cannot sign in.

    What somebody may do in a project is said by ProjectMember. `is_admin`: an administrator of the whole service, who
    makes accounts and projects; this alone opens no project.
    """

    __tablename__ = "user_account"
    __table_args__ = (
        one_of("kind", USER_KINDS),
        CheckConstraint("email = lower(email)", name="email_lower"),
    )

    id: Mapped[Id]
    email: Mapped[str | None] = mapped_column(unique=True)  # lower case; none for imported labelers
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default="person")
    is_admin: Mapped[bool] = mapped_column(server_default="false")
    password_hash: Mapped[str | None]
    is_active: Mapped[bool] = mapped_column(server_default="true")
    created_at: Mapped[Now]


class AuthSession(Base):
    """A sign-in. Only the SHA-256 of the cookie's token is kept."""

    __tablename__ = "auth_session"

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), index=True)
    created_at: Mapped[Now]
    expires_at: Mapped[datetime]


class SigninFailure(Base):
    """A wrong password, or one that is being looked at; kept for as long as it counts: see `app.accounts.attempts`."""

    __tablename__ = "signin_failure"
    __table_args__ = (
        Index("ix_signin_failure_email", "email", "at"),
        Index("ix_signin_failure_address", "address", "at"),
    )

    id: Mapped[Id]
    email: Mapped[str]  # as typed, lower case; there may be no such account
    address: Mapped[str]  # where the attempt came from: on the network, or from which known browser
    at: Mapped[Now]


class SigninLink(Base):
    """A one-time link: an invitation, or somebody's way to a new password (`user_id`)."""

    __tablename__ = "signin_link"
    __table_args__ = (
        one_of("kind", USER_KINDS),
        known_roles(),
        CheckConstraint("(project_id IS NULL) = (cardinality(roles) = 0)", name="roles_in_project"),
    )

    id: Mapped[Id]
    token_hash: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[int | None] = mapped_column(ForeignKey("project.id"), index=True)  # that it invites to
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")  # there
    is_admin: Mapped[bool] = mapped_column(server_default="false")  # makes an administrator
    kind: Mapped[str] = mapped_column(server_default="person")  # of the account it makes
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))  # set: signs this user in again
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class AuditEvent(Base):
    """Who did what when. Append-only by a trigger."""

    __tablename__ = "audit_event"
    __table_args__ = (
        # What reviewers did with one comparison.
        Index(
            "ix_audit_event_comparison",
            text("(details ->> 'comparison_id')"),
            postgresql_where=text("(details ->> 'comparison_id') IS NOT NULL"),
        ),
        # The newest events of a project, of one kind or by one person: `app.trail`.
        Index("ix_audit_event_newest", "project_id", "id"),
        Index("ix_audit_event_action", "project_id", "action", "id"),
        Index("ix_audit_event_actor", "project_id", "actor_id", "id"),
    )

    id: Mapped[Id]
    at: Mapped[Now]
    actor_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    project_id: Mapped[int | None] = mapped_column(ForeignKey("project.id"), index=True)
    action: Mapped[str]
    details: Mapped[Json] = mapped_column(server_default="{}")
