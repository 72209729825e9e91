"""Comparisons, the leases and judgments on them, and a reviewer's verdict.

Preference is always stored in canonical order: -4 (A far better) to 4 (B far better), 0 a tie, whichever side was
shown left. `app.labeling.answers` is the only place that turns shown sides into canonical ones.
"""

from datetime import datetime
from typing import Any
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

from app.models.base import Base, Id, Json, Now, one_of

PURPOSES = ("train", "heldout", "calibration", "human_eval", "repeat")
STATES = ("open", "settled", "in_review", "adjudicated", "withdrawn")
# Recused: the labeler has seen what others judged, and so gave up judging the comparison themselves.
LEASE_STATES = ("live", "submitted", "expired", "released", "skipped", "recused")
REVIEW_REASONS = ("split", "unjudgeable", "flagged", "reward_model", "requested")
SUPERSEDED_FOR = ("edited", "undone", "removed", "relabeled")
# A calibration item with its gold stands in no queue: it is mixed in, to each labeler once.
AVAILABLE = "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
IN_OPEN_QUEUE = f"{AVAILABLE} AND labeler_id IS NULL AND group_id IS NULL"
KEPT_FOR_LABELER = f"{AVAILABLE} AND labeler_id IS NOT NULL"
KEPT_FOR_GROUP = f"{AVAILABLE} AND group_id IS NOT NULL"
IN_CALIBRATION = "state = 'open' AND gold IS NOT NULL"

# What waits for a reviewer. Each has an index that holds exactly these, in the order they are reviewed in.
IN_DISAGREEMENT = "state = 'in_review' AND coalesce(review_reason, 'split') NOT IN ('flagged', 'requested')"
# Who won, as app.domain.consensus.who_won says it; null where nobody has said anything.
WINNER = (
    "CASE WHEN abs(p_b - 0.5) < 5e-7 OR 1.5 * p_tie - greatest(p_b, 1 - p_b) > 5e-7 THEN 0"
    " ELSE sign(coalesce(p_b - 0.5, consensus)) END"
)
IN_CONFLICT = (  # people chose one side, and the reward model is sure of the other
    "state IN ('settled', 'in_review') AND NOT conflict_dismissed AND ("
    f"{WINNER} = 1 AND reward_p_b <= 0.2 OR {WINNER} = -1 AND reward_p_b >= 0.8)"
)
IS_FLAGGED = "(flagged OR state = 'in_review' AND review_reason = 'flagged') AND state <> 'withdrawn'"
IS_REQUESTED = "state = 'in_review' AND review_reason = 'requested'"
LEAST_AGREED = "coalesce(agreement, 0)"
# Below 1 where the reward model was not trained on the comparison: it agrees with what it has learned by heart.
SUREST_CONFLICT = "reward_trained::integer + least(reward_p_b, 1 - reward_p_b)"


class Comparison(Base):
    """A prompt and two of its completions, waiting for `overlap` judgments.

    `overlap` is what is wanted now; where overlap is adaptive it moves between 1 and `overlap_max` while answers come.
    Elsewhere it grows (`grown`) when labelers could not judge. A calibration item (`gold`) is never settled: it is for
    every labeler once, so its overlap grows as it is given out. `opened_xid` is the transaction that last put it into a
    queue, or to another place there (kept by a trigger): how a labeler who has been past it learns of it.
    A comparison kept for one labeler or one group is offered to nobody else. Of a k-way ranking only the first pair is
    offered; its answer yields the judgments of all pairs with the same `ranking_id`. A `repeat` shows a labeler what
    they judged before (`repeat_of_id`), sides swapped; a calibration item may be the copy of a comparison too. A
    comparison asked again under a newer rubric is another one (`relabel_of_id`); the old one is then withdrawn and its
    judgments superseded.

    While nobody has begun a comparison, its `rubric_id` may be of an older version: a trigger on lease puts the newest
    there when it is first handed out. `judgment_count` and `lease_count` are kept by triggers on judgment and lease;
    the check below then makes it impossible to give a comparison to more people than it wants.
    """

    __tablename__ = "comparison"
    __table_args__ = (
        UniqueConstraint("project_id", "digest"),
        UniqueConstraint("id", "rubric_id"),  # target of judgment's composite foreign key
        one_of("purpose", PURPOSES),
        one_of("state", STATES),
        CheckConstraint("completion_a_id <> completion_b_id", name="two_completions"),
        CheckConstraint("overlap >= 1 AND (overlap <= 1000 OR gold IS NOT NULL)", name="overlap_range"),
        CheckConstraint("judgment_count + lease_count <= overlap", name="overlap_never_exceeded"),
        CheckConstraint("overlap_max BETWEEN overlap AND 1000", name="overlap_max_range"),
        CheckConstraint("gold BETWEEN -4 AND 4", name="gold_range"),
        CheckConstraint("p_b BETWEEN 0 AND 1", name="p_b_range"),
        CheckConstraint("p_tie BETWEEN 0 AND 1", name="p_tie_range"),
        CheckConstraint("reward_p_b BETWEEN 0 AND 1", name="reward_p_b_range"),
        CheckConstraint("purpose <> 'repeat' OR repeat_of_id IS NOT NULL", name="repeat_of_something"),
        CheckConstraint("repeat_of_id IS NULL OR purpose IN ('repeat', 'calibration')", name="repeated_for_measuring"),
        CheckConstraint("grown BETWEEN 0 AND overlap - 1", name="grown_range"),
        CheckConstraint("labeler_id IS NULL OR group_id IS NULL", name="kept_for_one"),
        one_of("review_reason", REVIEW_REASONS),
        CheckConstraint("(gold IS NULL) OR purpose = 'calibration'", name="gold_is_calibration"),
        # A pair that was chosen for what it is likely to show cannot tell how often people prefer a policy.
        CheckConstraint(
            "purpose <> 'human_eval' OR coalesce(selection ->> 'policy', '') NOT IN "
            "('near_miss', 'uncertain', 'drts', 'delta_ucb')",
            name="measured_at_random",
        ),
        Index(
            "ix_comparison_available",
            "project_id",
            text("(- priority)"),
            "id",
            postgresql_where=text(IN_OPEN_QUEUE),
        ),
        Index("ix_comparison_opened", "project_id", "opened_xid", "id", postgresql_where=text(IN_OPEN_QUEUE)),
        Index("ix_comparison_opened_in_group", "group_id", "opened_xid", "id", postgresql_where=text(KEPT_FOR_GROUP)),
        Index("ix_comparison_known", "project_id", "id", postgresql_where=text("gold IS NOT NULL")),
        Index(
            "ix_comparison_kept_for_labeler",
            "labeler_id",
            "project_id",
            text("(- priority)"),
            "id",
            postgresql_where=text(KEPT_FOR_LABELER),
        ),
        Index(
            "ix_comparison_kept_for_group",
            "group_id",
            text("(- priority)"),
            "id",
            postgresql_where=text(KEPT_FOR_GROUP),
        ),
        Index(
            "ix_comparison_in_disagreement",
            "project_id",
            text(LEAST_AGREED),
            "id",
            postgresql_where=text(IN_DISAGREEMENT),
        ),
        Index(
            "ix_comparison_in_conflict",
            "project_id",
            text(f"({SUREST_CONFLICT})"),
            "id",
            postgresql_where=text(IN_CONFLICT),
        ),
        Index("ix_comparison_flagged", "project_id", "id", postgresql_where=text(IS_FLAGGED)),
        Index("ix_comparison_requested", "project_id", "id", postgresql_where=text(IS_REQUESTED)),
        Index("ix_comparison_in_order", "project_id", "id"),
        Index("ix_comparison_state", "project_id", "state", "id"),
        Index("ix_comparison_repeat_of", "repeat_of_id", postgresql_where=text("repeat_of_id IS NOT NULL")),
        Index(
            "uq_comparison_relabel_of",
            "relabel_of_id",
            unique=True,
            postgresql_where=text("relabel_of_id IS NOT NULL"),
        ),
        Index("ix_comparison_ranking", "ranking_id", postgresql_where=text("ranking_id IS NOT NULL")),
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
    overlap_max: Mapped[int | None]  # none: the overlap is fixed
    grown: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    labeler_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    group_id: Mapped[int | None] = mapped_column(ForeignKey("labeler_group.id"))
    repeat_of_id: Mapped[int | None] = mapped_column(ForeignKey("comparison.id"))
    relabel_of_id: Mapped[int | None] = mapped_column(ForeignKey("comparison.id"))
    ranking_id: Mapped[int | None] = mapped_column(ForeignKey("ranking.id"))
    offered: Mapped[bool] = mapped_column(server_default="true")
    # How the pair was chosen: policy (app.domain.pairing), and the numbers it looked at.
    selection: Mapped[Json] = mapped_column(server_default="{}")
    priority: Mapped[int] = mapped_column(server_default="0")
    gold: Mapped[int | None] = mapped_column(SmallInteger)
    # Of imported pairs only: the data set's own name for the pair, and a digest that tells when it comes again.
    external_id: Mapped[str | None]
    digest: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="open")
    judgment_count: Mapped[int] = mapped_column(server_default="0")
    lease_count: Mapped[int] = mapped_column(server_default="0")
    opened_xid: Mapped[int] = mapped_column(server_default=text("(pg_current_xact_id())::text::bigint"))
    # Written when it settles: share of judgment pairs on the same side, and the consensus preference.
    agreement: Mapped[float | None] = mapped_column()
    consensus: Mapped[float | None] = mapped_column()
    # The project's consensus method's posterior that B is better (a tie counts half) and of a tie.
    p_b: Mapped[float | None]
    p_tie: Mapped[float | None]
    # What the newest reward model that read it says, which model that is, and whether it was trained on it.
    reward_p_b: Mapped[float | None]
    reward_model_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    reward_trained: Mapped[bool] = mapped_column(server_default="false")
    # What brought it to review; a live judgment carries a content flag that no reviewer has dealt with; a reviewer
    # found the people right against the reward model.
    review_reason: Mapped[str | None]
    flagged: Mapped[bool] = mapped_column(server_default="false")
    conflict_dismissed: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[Now]
    settled_at: Mapped[datetime | None]


# What is asked first. A negated number, so that one range of an index holds all that follows a place.
QUEUE_ORDER = (-Comparison.priority, Comparison.id)


class Ranking(Base):
    """K completions of one prompt to be put in order. Its pairs are comparisons; the first of them is offered."""

    __tablename__ = "ranking"
    __table_args__ = (CheckConstraint("size BETWEEN 3 AND 9", name="size_range"),)

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"), index=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    size: Mapped[int] = mapped_column(SmallInteger)
    created_at: Mapped[Now]


class Lease(Base):
    """The right of one labeler to judge one comparison until it expires, and the side shown to them."""

    __tablename__ = "lease"
    __table_args__ = (
        one_of("state", LEASE_STATES),
        Index("uq_lease_one_live", "comparison_id", "labeler_id", unique=True, postgresql_where=text("state = 'live'")),
        Index("ix_lease_live_expiry", "expires_at", postgresql_where=text("state = 'live'")),
        Index("ix_lease_live_labeler", "labeler_id", postgresql_where=text("state = 'live'")),
        Index("ix_lease_skipped", "labeler_id", "created_at", postgresql_where=text("state = 'skipped'")),
        Index(
            "ix_lease_given_back",
            "labeler_id",
            "created_at",
            postgresql_where=text("state IN ('released', 'expired')"),
        ),
        Index("ix_lease_comparison", "comparison_id", "labeler_id"),
        Index("ix_lease_created", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id"))
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    swapped: Mapped[bool]  # True: B is shown first (left)
    # Order in which a ranking's completions are shown; none for a pair.
    shown: Mapped[list[Any] | None]
    state: Mapped[str] = mapped_column(server_default="live")
    reason: Mapped[str] = mapped_column(server_default="")  # why it was skipped
    created_at: Mapped[Now]
    expires_at: Mapped[datetime]  # or when it ended, where it went back unanswered


class QueuePlace(Base):
    """How far a labeler has come in a queue: what precedes this place (by priority, then id) is not for them any more.

    That holds for what was in the queue before `checked_xid`; what came into it since has a later `opened_xid` and is
    looked at apart. So the next task is found without looking at what was judged already, however much that is.
    """

    __tablename__ = "queue_place"
    __table_args__ = (
        UniqueConstraint("labeler_id", "project_id", "group_id", postgresql_nulls_not_distinct=True),
        CheckConstraint("(priority IS NULL) = (comparison_id IS NULL)", name="whole_place"),
    )

    id: Mapped[Id]
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    group_id: Mapped[int | None] = mapped_column(
        ForeignKey("labeler_group.id", ondelete="CASCADE")
    )  # none: the open one
    priority: Mapped[int | None]  # none: nothing is left
    comparison_id: Mapped[int | None]  # a mark only; the comparison need not be there any more
    checked_xid: Mapped[int]


class Judgment(Base):
    """One labeler's answer. Append-only by a trigger: an edit is a new row, the old one gets `superseded_at`.

    `preference` is none where the labeler could not judge; a tie with `both_bad` says that neither response is any
    good. `aspects` are preferences by aspect of the rubric, `flags` names of its content flags.
    """

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
        CheckConstraint("preference BETWEEN -4 AND 4", name="preference_range"),
        CheckConstraint("NOT both_bad OR preference = 0", name="both_bad_is_a_tie"),
        CheckConstraint("(superseded_at IS NULL) = (superseded_for IS NULL)", name="superseded_for_something"),
        one_of("superseded_for", SUPERSEDED_FOR),
        CheckConstraint("duration_ms >= 0", name="duration_not_negative"),
        # Imported data say when; pages count by week.
        CheckConstraint("created_at BETWEEN '1970-01-01 00:00Z' AND '9000-01-01 00:00Z'", name="created_at_range"),
    )

    id: Mapped[Id]
    comparison_id: Mapped[int]
    labeler_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    rubric_id: Mapped[int]
    lease_id: Mapped[UUID | None] = mapped_column(ForeignKey("lease.id"))
    preference: Mapped[int | None] = mapped_column(SmallInteger)
    both_bad: Mapped[bool] = mapped_column(server_default="false")
    aspects: Mapped[Json] = mapped_column(server_default="{}")
    flags: Mapped[list[Any]] = mapped_column(server_default="[]")
    rationale: Mapped[str] = mapped_column(server_default="")
    swapped: Mapped[bool | None]  # none: the side shown is not known (imported)
    duration_ms: Mapped[int | None]
    idempotency_key: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[Now]
    superseded_at: Mapped[datetime | None]
    superseded_for: Mapped[str | None]


class Adjudication(Base):
    """An admin's verdict on a split comparison; it stands in place of the judgments."""

    __tablename__ = "adjudication"
    __table_args__ = (CheckConstraint("verdict BETWEEN -4 AND 4", name="verdict_range"),)

    id: Mapped[Id]
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id"), unique=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    verdict: Mapped[int] = mapped_column(SmallInteger)
    note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Now]
