"""Answers that people wrote or chose to be imitated, and the wish for them."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

# Withdrawn: with all that its author wrote in the project; for good.
REVIEW_STATES = ("pending", "approved", "rejected", "withdrawn")
EVENTS = ("approved", "rejected", "revised")


class Demonstration(Base):
    """An answer to a prompt, to be learned word by word once it is approved. Split and slices are the prompt's."""

    __tablename__ = "demonstration"
    __table_args__ = (
        # The same answer to the same prompt stands once.
        UniqueConstraint("prompt_id", "digest"),
        Index("ix_demonstration_project_state", "project_id", "state", "id"),
        Index("ix_demonstration_author", "author_id", "id"),
        one_of("state", REVIEW_STATES),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"))
    text: Mapped[str]
    written: Mapped[str | None]  # what its author had written, where the reviewer's edit stands in `text`
    digest: Mapped[str]  # of the text: SHA-256
    author_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    source: Mapped[str] = mapped_column(server_default="")  # the file or person it is said to come from
    state: Mapped[str] = mapped_column(server_default="pending")
    rubric_id: Mapped[int | None] = mapped_column(ForeignKey("rubric.id"))  # written under it; none: imported
    completion_id: Mapped[int | None] = mapped_column(ForeignKey("completion.id"))  # the sample it was edited from
    duration_ms: Mapped[int | None]
    reviewer_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    review_note: Mapped[str] = mapped_column(server_default="")
    reviewed_at: Mapped[datetime | None]
    created_at: Mapped[Now]


class DemonstrationEvent(Base):
    """A review, or another text from the author: what the demonstration's own columns then no longer say."""

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
    text: Mapped[str]  # as it stood until then
    created_at: Mapped[Now]


class DemonstrationTask(Base):
    """That a prompt wants an answer written, and who is writing it now; gone once it is written."""

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
