"""People (and other judges), their sessions, one-time links, and the audit trail."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now, one_of
from app.models.member import known_roles

# Who or what judged. Judgments by machines are never counted as people's.
USER_KINDS = ("person", "imported", "simulated", "ai_judge")


class User(Base):
    """Someone who judges or runs the service. `imported` labelers come with data and cannot sign in.

    ProjectMember says what a user may do in a project. `is_admin`: an administrator of the whole service, who creates
    accounts and projects; this alone gives access to no project.
    """

    __tablename__ = "user_account"
    __table_args__ = (
        one_of("kind", USER_KINDS),
        CheckConstraint("email = lower(email)", name="email_lower"),
    )

    id: Mapped[Id]
    email: Mapped[str | None] = mapped_column(unique=True)  # lower case; None for imported labelers
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
    """A failed sign-in, or one whose password is being checked. Kept for as long as it counts: see
    `app.accounts.attempts`."""

    __tablename__ = "signin_failure"
    __table_args__ = (
        Index("ix_signin_failure_email", "email", "at"),
        Index("ix_signin_failure_address", "address", "at"),
    )

    id: Mapped[Id]
    email: Mapped[str]  # as typed, lower case; there may be no such account
    address: Mapped[str]  # where the attempt came from: a network address, or a known browser
    at: Mapped[Now]


class SigninLink(Base):
    """A one-time link: an invitation, or a link for setting a new password (`user_id`)."""

    __tablename__ = "signin_link"
    __table_args__ = (
        one_of("kind", USER_KINDS),
        known_roles(),
        CheckConstraint("(project_id IS NULL) = (cardinality(roles) = 0)", name="roles_in_project"),
    )

    id: Mapped[Id]
    token_hash: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[int | None] = mapped_column(ForeignKey("project.id"), index=True)  # the project it invites to
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")  # in that project
    is_admin: Mapped[bool] = mapped_column(server_default="false")  # makes its user an administrator
    kind: Mapped[str] = mapped_column(server_default="person")  # kind of the account it creates
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))  # set: lets this user set a new password
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class AuditEvent(Base):
    """Who did what and when. A trigger makes it append-only."""

    __tablename__ = "audit_event"
    __table_args__ = (
        # Finds what reviewers did with one comparison.
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
