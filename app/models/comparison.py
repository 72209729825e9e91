"""Comparisons, the leases and judgments on them, and a reviewer's verdict.

Preference is always stored in canonical order: -3 (A much better) to 3 (B much better), 0 a tie, whichever side was
shown left. `app.labeling.service` is the only place that turns shown sides into canonical ones.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    SmallInteger,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Now, one_of

PURPOSES = ("train", "heldout", "calibration", "human_eval", "repeat")
STATES = ("open", "settled", "in_review", "adjudicated", "withdrawn")
LEASE_STATES = ("live", "submitted", "expired", "released")


class Comparison(Base):
    """A prompt and two of its completions, waiting for `overlap` judgments.

    `judgment_count` and `lease_count` are kept by triggers on judgment and lease; the check below then makes it
    impossible to give a comparison to more people than it wants.
    """

    __tablename__ = "comparison"
    __table_args__ = (
        UniqueConstraint("project_id", "digest"),
        UniqueConstraint("id", "rubric_id"),  # target of judgment's composite foreign key
        one_of("purpose", PURPOSES),
        one_of("state", STATES),
        CheckConstraint("completion_a_id <> completion_b_id", name="two_completions"),
        CheckConstraint("overlap BETWEEN 1 AND 1000", name="overlap_range"),
        CheckConstraint("judgment_count + lease_count <= overlap", name="overlap_never_exceeded"),
        CheckConstraint("gold BETWEEN -3 AND 3", name="gold_range"),
        CheckConstraint("(gold IS NULL) OR purpose = 'calibration'", name="gold_is_calibration"),
        Index(
            "ix_comparison_available",
            "project_id",
            text("priority DESC"),
            "id",
            postgresql_where=text("state = 'open' AND judgment_count + lease_count < overlap"),
        ),
        Index("ix_comparison_review", "project_id", "agreement", "id", postgresql_where=text("state = 'in_review'")),
        Index("ix_comparison_project_state", "project_id", "state"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    completion_a_id: Mapped[int] = mapped_column(ForeignKey("completion.id"))
    completion_b_id: Mapped[int] = mapped_column(ForeignKey("completion.id"))
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    round_id: Mapped[int | None] = mapped_column(ForeignKey("round.id"), index=True)  # whose samples opened it
    purpose: Mapped[str]
    overlap: Mapped[int]
    priority: Mapped[int] = mapped_column(server_default="0")
    gold: Mapped[int | None] = mapped_column(SmallInteger)
    # Of imported pairs only: the data set's own name for the pair, and a digest that tells when it comes again.
    external_id: Mapped[str | None]
    digest: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="open")
    judgment_count: Mapped[int] = mapped_column(server_default="0")
    lease_count: Mapped[int] = mapped_column(server_default="0")
    # Written when it settles: share of judgment pairs on the same side, and the consensus preference.
    agreement: Mapped[float | None] = mapped_column()
    consensus: Mapped[float | None] = mapped_column()
    created_at: Mapped[Now]
    settled_at: Mapped[datetime | None]


class Lease(Base):
    """The right of one labeler to judge one comparison until it expires, and the side shown to them."""

    __tablename__ = "lease"
    __table_args__ = (
        one_of("state", LEASE_STATES),
        Index("uq_lease_one_live", "comparison_id", "labeler_id", unique=True, postgresql_where=text("state = 'live'")),
        Index("ix_lease_live_expiry", "expires_at", postgresql_where=text("state = 'live'")),
        Index("ix_lease_live_labeler", "labeler_id", postgresql_where=text("state = 'live'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id"), index=True)
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    swapped: Mapped[bool]  # True: B is shown first (left)
    state: Mapped[str] = mapped_column(server_default="live")
    created_at: Mapped[Now]
    expires_at: Mapped[datetime]


class Judgment(Base):
    """One labeler's answer. Append-only by a trigger: an edit is a new row, the old one gets `superseded_at`."""

    __tablename__ = "judgment"
    __table_args__ = (
        # A judgment's rubric is the comparison's.
        ForeignKeyConstraint(["comparison_id", "rubric_id"], ["comparison.id", "comparison.rubric_id"]),
        Index(
            "uq_judgment_one_live",
            "comparison_id",
            "labeler_id",
            unique=True,
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index("ix_judgment_labeler", "labeler_id", "created_at"),
        # Superseded ones too: nobody is asked twice, and moving a comparison to a new rubric checks the foreign key.
        Index("ix_judgment_comparison", "comparison_id", "labeler_id"),
        CheckConstraint("preference BETWEEN -3 AND 3", name="preference_range"),
        CheckConstraint("duration_ms >= 0", name="duration_not_negative"),
    )

    id: Mapped[Id]
    comparison_id: Mapped[int]
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    rubric_id: Mapped[int]
    lease_id: Mapped[UUID | None] = mapped_column(ForeignKey("lease.id"))
    preference: Mapped[int] = mapped_column(SmallInteger)
    rationale: Mapped[str] = mapped_column(server_default="")
    swapped: Mapped[bool | None]  # none: the side shown is not known (imported)
    duration_ms: Mapped[int | None]
    idempotency_key: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[Now]
    superseded_at: Mapped[datetime | None]


class Adjudication(Base):
    """An admin's verdict on a split comparison; it stands in place of the judgments."""

    __tablename__ = "adjudication"
    __table_args__ = (CheckConstraint("verdict BETWEEN -3 AND 3", name="verdict_range"),)

    id: Mapped[Id]
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id"), unique=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    verdict: Mapped[int] = mapped_column(SmallInteger)
    note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Now]
