"""Rubrics: a draft, or a published version, which a trigger keeps from changing."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

RATIONALE_RULES = ("optional", "required")


class Rubric(Base):
    """`version` is None for the draft. Strengths go from 1 to `strengths` each way; 0 is a tie."""

    __tablename__ = "rubric"
    __table_args__ = (
        UniqueConstraint("project_id", "version"),
        Index("uq_rubric_one_draft", "project_id", unique=True, postgresql_where="version IS NULL"),
        one_of("rationale_rule", RATIONALE_RULES),
        CheckConstraint("strengths BETWEEN 1 AND 4", name="strengths_range"),
        CheckConstraint("(version IS NULL) = (published_at IS NULL)", name="published_has_version"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    version: Mapped[int | None]
    guideline: Mapped[str]  # Markdown
    strengths: Mapped[int] = mapped_column(server_default="3")
    allow_tie: Mapped[bool] = mapped_column(server_default="true")
    allow_both_bad: Mapped[bool] = mapped_column(server_default="true")
    allow_cannot_judge: Mapped[bool] = mapped_column(server_default="true")
    rationale_rule: Mapped[str] = mapped_column(server_default="optional")
    # Lists of app.documents's Aspect, Flag, Example, QuizItem and Principle as JSON.
    aspects: Mapped[list[Any]] = mapped_column(server_default="[]")
    flags: Mapped[list[Any]] = mapped_column(server_default="[]")
    examples: Mapped[list[Any]] = mapped_column(server_default="[]")
    quiz: Mapped[list[Any]] = mapped_column(server_default="[]")
    principles: Mapped[list[Any]] = mapped_column(server_default="[]")
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]
    # The draft's revision goes up with every edit, so nobody overwrites an edit they have not seen.
    revision: Mapped[int] = mapped_column(server_default="1")
    edited_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    edited_at: Mapped[Now]
    published_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    published_at: Mapped[datetime | None]
    # The version whose quiz counts as this version's: labelers who passed it need no new quiz. None: this version's
    # own.
    quiz_of_version: Mapped[int | None]

    @property
    def quiz_version(self) -> int | None:
        return self.quiz_of_version or self.version
