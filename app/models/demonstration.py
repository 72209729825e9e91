"""Demonstrations: answers that people wrote or approved for the model to imitate, and the tasks to write them."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

# Withdrawn: permanently, together with everything that its author wrote in the project.
REVIEW_STATES = ("pending", "approved", "rejected", "withdrawn")
EVENTS = ("approved", "rejected", "revised")


class Demonstration(Base):
    """An answer to a prompt, which models learn to imitate once it is approved. It has the prompt's
    split and slices."""

    __tablename__ = "demonstration"
    __table_args__ = (
        # The same answer to the same prompt is stored once.
        UniqueConstraint("prompt_id", "digest"),
        Index("ix_demonstration_project_state", "project_id", "state", "id"),
        Index("ix_demonstration_author", "author_id", "id"),
        one_of("state", REVIEW_STATES),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"))
    text: Mapped[str]
    written: Mapped[str | None]  # the author's text, if a reviewer edited `text`
    digest: Mapped[str]  # SHA-256 of the text
    author_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    source: Mapped[str] = mapped_column(server_default="")  # the file or person that it is said to come from
    state: Mapped[str] = mapped_column(server_default="pending")
    # rubric version at the time of writing; None: imported
    rubric_id: Mapped[int | None] = mapped_column(ForeignKey("rubric.id"))
    completion_id: Mapped[int | None] = mapped_column(ForeignKey("completion.id"))  # the sample it was edited from
    duration_ms: Mapped[int | None]
    reviewer_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    # An AI critic's revision (app.models.constitution). It stays marked if a reviewer edits it.
    ai_revised: Mapped[bool] = mapped_column(server_default="false")
    review_note: Mapped[str] = mapped_column(server_default="")
    reviewed_at: Mapped[datetime | None]
    created_at: Mapped[Now]


class DemonstrationEvent(Base):
    """A review, or a new text from the author. Keeps what the demonstration's own columns no longer hold."""

    __tablename__ = "demonstration_event"
    __table_args__ = (
        Index("ix_demonstration_event_demonstration", "demonstration_id", "id"),
        one_of("action", EVENTS),
    )

    id: Mapped[Id]
    demonstration_id: Mapped[int] = mapped_column(ForeignKey("demonstration.id"))
    actor_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    action: Mapped[str]
    note: Mapped[str] = mapped_column(server_default="")
    text: Mapped[str]  # the text until then
    created_at: Mapped[Now]


class DemonstrationTask(Base):
    """A request to write an answer to a prompt, and who is writing it now. Deleted once it is written."""

    __tablename__ = "demonstration_task"
    __table_args__ = (
        CheckConstraint("(labeler_id IS NULL) = (expires_at IS NULL)", name="held_until"),
        Index("ix_demonstration_task_queue", "project_id", "id"),
        Index("uq_demonstration_task_labeler", "project_id", "labeler_id", unique=True),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    completion_id: Mapped[int | None] = mapped_column(ForeignKey("completion.id"))  # a sample to start from
    labeler_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    expires_at: Mapped[datetime | None]
    skips: Mapped[list[Any]] = mapped_column(server_default="[]")  # [{"labeler": id, "reason": "..."}, ...]
    created_at: Mapped[Now]
