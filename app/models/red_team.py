"""Red teaming: prompts that labelers write to make the policy fail, the policy's answers, and their ratings."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now


class RedTeamAttempt(Base):
    """One attempt. `severity` goes from 0 (held) to 3 (failed badly); tags say in which ways it failed.

    Its conversation and answer are stored only here until an admin accepts it as a prompt of the project. Until then,
    nothing that samples, trains or evaluates can read it. Its run tells whether it still waits for the answer.
    """

    __tablename__ = "red_team_attempt"
    __table_args__ = (
        CheckConstraint("severity BETWEEN 0 AND 3", name="severity_range"),
        CheckConstraint("(severity IS NULL) = (rated_at IS NULL)", name="rated_has_severity"),
        CheckConstraint("severity IS NULL OR answer IS NOT NULL", name="rated_has_answer"),
        CheckConstraint("prompt_id IS NULL OR severity IS NOT NULL", name="accepted_is_rated"),
        Index("ix_red_team_attempt_project", "project_id", "id"),
        Index("ix_red_team_attempt_author", "author_id", "id"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    author_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    messages: Mapped[list[Any]]  # as in a prompt
    domain: Mapped[str] = mapped_column(server_default="")
    safety_category: Mapped[str]
    goal: Mapped[str] = mapped_column(server_default="")  # what the author wanted the policy to do
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))  # the policy that is asked
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"), index=True)
    answer: Mapped[Json | None]  # text, finish_reason, n_tokens, seed and sampling, as in a completion
    severity: Mapped[int | None] = mapped_column(SmallInteger)
    tags: Mapped[list[Any]] = mapped_column(server_default="[]")
    note: Mapped[str] = mapped_column(server_default="")
    idempotency_key: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[Now]
    rated_at: Mapped[datetime | None]
    prompt_id: Mapped[int | None] = mapped_column(ForeignKey("prompt.id"), index=True)  # the prompt it was accepted as
    withdrawn_at: Mapped[datetime | None]  # permanently, together with everything that its author wrote in the project
