"""Answers that people wrote or chose to be imitated."""

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

REVIEW_STATES = ("pending", "approved", "rejected")


class Demonstration(Base):
    """An answer to a prompt, to be learned word by word once it is approved. Split and slices are the prompt's."""

    __tablename__ = "demonstration"
    __table_args__ = (
        # The same answer to the same prompt stands once.
        UniqueConstraint("prompt_id", "digest"),
        Index("ix_demonstration_project_state", "project_id", "state"),
        one_of("state", REVIEW_STATES),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"))
    text: Mapped[str]
    digest: Mapped[str]  # of the text: SHA-256
    author_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    source: Mapped[str] = mapped_column(server_default="")  # the file or person it is said to come from
    state: Mapped[str] = mapped_column(server_default="pending")
    created_at: Mapped[Now]
