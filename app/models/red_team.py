"""Red teaming: prompts that labelers write to make the policy fail, what it answered, and how that was rated."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

ATTEMPT_STATES = ("waiting", "answered", "rated", "failed")


class RedTeamAttempt(Base):
    """One attempt. `severity` 0 (held) to 3 (failed badly); tags say in which ways. Rated ones can become prompts."""

    __tablename__ = "red_team_attempt"
    __table_args__ = (
        one_of("state", ATTEMPT_STATES),
        CheckConstraint("severity BETWEEN 0 AND 3", name="severity_range"),
        CheckConstraint("(severity IS NULL) = (rated_at IS NULL)", name="rated_has_severity"),
        Index("ix_red_team_attempt_project", "project_id", "id"),
        Index("ix_red_team_attempt_author", "author_id", "id"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    author_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"), index=True)
    completion_id: Mapped[int | None] = mapped_column(ForeignKey("completion.id"))
    goal: Mapped[str] = mapped_column(server_default="")  # what the author wanted the policy to do
    state: Mapped[str] = mapped_column(server_default="waiting")
    severity: Mapped[int | None] = mapped_column(SmallInteger)
    tags: Mapped[list[Any]] = mapped_column(server_default="[]")
    note: Mapped[str] = mapped_column(server_default="")
    idempotency_key: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[Now]
    rated_at: Mapped[datetime | None]
