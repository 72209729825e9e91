"""What a project stores about its labelers: groups, state, passed quizzes, and reliability."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now, one_of

LABELER_STATES = ("active", "paused", "removed")


class LabelerGroup(Base):
    """A group of people to whom comparisons can be assigned: experts in a domain, speakers of a language."""

    __tablename__ = "labeler_group"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    created_at: Mapped[Now]


class LabelerGroupMember(Base):
    __tablename__ = "labeler_group_member"

    group_id: Mapped[int] = mapped_column(ForeignKey("labeler_group.id", ondelete="CASCADE"), primary_key=True)
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), primary_key=True, index=True)


class ProjectLabeler(Base):
    """A labeler's state in a project. Without a row, the labeler is active and nothing is measured yet."""

    __tablename__ = "project_labeler"
    __table_args__ = (one_of("state", LABELER_STATES),)

    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"), primary_key=True)
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), primary_key=True, index=True)
    state: Mapped[str] = mapped_column(server_default="active")
    reason: Mapped[str] = mapped_column(server_default="")  # shown to the labeler while paused
    changed_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))  # None: the service itself
    changed_at: Mapped[Now]
    # Probability of agreeing with the truth, from the last fit over all judgments (app.domain.reliability).
    reliability: Mapped[float | None]
    # From the same fit: its 95% interval (low, high) and the vote weights (weights).
    fitted: Mapped[Json] = mapped_column(server_default="{}")
    # Calibration counts answers from here on; it restarts when an admin unpauses the labeler.
    counted_from: Mapped[datetime | None]


class Qualification(Base):
    """A labeler's quiz under one rubric version: answers so far, and the result."""

    __tablename__ = "qualification"
    __table_args__ = (
        UniqueConstraint("rubric_id", "labeler_id", "attempt"),
        CheckConstraint("(passed IS NULL) = (finished_at IS NULL)", name="finished_has_outcome"),
    )

    id: Mapped[Id]
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), index=True)
    attempt: Mapped[int] = mapped_column(server_default="1")
    answers: Mapped[Json] = mapped_column(server_default="{}")  # quiz item -> preference in the order shown in the quiz
    correct: Mapped[int] = mapped_column(server_default="0")
    passed: Mapped[bool | None]
    created_at: Mapped[Now]
    finished_at: Mapped[datetime | None]
