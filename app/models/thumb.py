"""Unpaired feedback: whether a labeler likes one response."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

THUMBS_SUPERSEDED_FOR = ("edited", "removed")


class Thumb(Base):
    """A labeler's thumb, up (`liked`) or down. A changed thumb is a new row; the old row gets `superseded_at`."""

    __tablename__ = "thumb"
    __table_args__ = (
        Index(
            "uq_thumb_one_live",
            "completion_id",
            "labeler_id",
            unique=True,
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index("ix_thumb_project", "project_id", "id"),
        Index("ix_thumb_labeler", "labeler_id", "id"),
        CheckConstraint("duration_ms >= 0", name="duration_not_negative"),
        CheckConstraint("(superseded_at IS NULL) = (superseded_for IS NULL)", name="superseded_for_something"),
        one_of("superseded_for", THUMBS_SUPERSEDED_FOR),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    completion_id: Mapped[int] = mapped_column(ForeignKey("completion.id"))
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    liked: Mapped[bool]
    rationale: Mapped[str] = mapped_column(server_default="")
    duration_ms: Mapped[int | None]
    created_at: Mapped[Now]
    superseded_at: Mapped[datetime | None]
    superseded_for: Mapped[str | None]
