"""What an AI critic made of a policy's answer under a principle of the rubric's constitution."""

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

OUTCOMES = ("revised", "unchanged", "failed")


class AIRevision(Base):
    """One answer, the principle drawn for it, the critique and the revision.

    The outcome `unchanged` means that the critic repeated the answer; with `failed`, `error` says why there is no
    revision. `revised_id` is the response that labelers compare with the original, `demonstration_id` the demonstration
    that waits for review. Both are marked (`ai_revised`).
    """

    __tablename__ = "ai_revision"
    __table_args__ = (
        # A resumed run stores nothing twice.
        UniqueConstraint("run_id", "completion_id"),
        one_of("outcome", OUTCOMES),
        CheckConstraint("(outcome = 'revised') = (text IS NOT NULL)", name="revised_has_text"),
        CheckConstraint("(outcome = 'failed') = (error IS NOT NULL)", name="failed_has_error"),
        Index("ix_ai_revision_completion", "completion_id"),
        Index("ix_ai_revision_revised", "revised_id"),
        Index("ix_ai_revision_demonstration", "demonstration_id"),
    )

    id: Mapped[Id]
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"))  # the critic
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    completion_id: Mapped[int] = mapped_column(ForeignKey("completion.id"))  # the original
    principle: Mapped[str]
    critique: Mapped[str] = mapped_column(server_default="")
    outcome: Mapped[str]
    text: Mapped[str | None]
    error: Mapped[str | None]
    revised_id: Mapped[int | None] = mapped_column(ForeignKey("completion.id"))
    demonstration_id: Mapped[int | None] = mapped_column(ForeignKey("demonstration.id"))
    served_model: Mapped[str] = mapped_column(server_default="")
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    cost: Mapped[float | None]
    ms: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[Now]
