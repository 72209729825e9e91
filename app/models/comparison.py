"""Comparisons, the leases and judgments on them, and a reviewer's verdict.

Preference is always stored in canonical order: -4 (A far better) to 4 (B far better), 0 a tie, whichever side was shown
left. Only `app.labeling.answers` converts shown sides to canonical order.
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
# Recused: the labeler has seen other people's judgments, so they can no longer judge the comparison.
LEASE_STATES = ("live", "submitted", "expired", "released", "skipped", "recused")
REVIEW_REASONS = ("split", "unjudgeable", "flagged", "reward_model", "requested")
SUPERSEDED_FOR = ("edited", "undone", "removed", "relabeled")
# A calibration item (with gold) is in no queue: it is mixed in, once for each labeler.
AVAILABLE = "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
IN_OPEN_QUEUE = f"{AVAILABLE} AND labeler_id IS NULL AND group_id IS NULL"
KEPT_FOR_LABELER = f"{AVAILABLE} AND labeler_id IS NOT NULL"
KEPT_FOR_GROUP = f"{AVAILABLE} AND group_id IS NOT NULL"
IN_CALIBRATION = "state = 'open' AND gold IS NOT NULL"

# What waits for a reviewer. Each predicate has an index with exactly these rows, in the order of review.
IN_DISAGREEMENT = "state = 'in_review' AND coalesce(review_reason, 'split') NOT IN ('flagged', 'requested')"
# The winner, as in app.domain.consensus.who_won; NULL if nobody has stated a preference.
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
# Comparisons that the reward model was not trained on come first (below 1), because it has memorized the others.
SUREST_CONFLICT = "reward_trained::integer + least(reward_p_b, 1 - reward_p_b)"


class Comparison(Base):
    """A prompt and two of its completions, waiting for `overlap` judgments.

    `overlap` is how many judgments are wanted now. With adaptive overlap it moves between 1 and `overlap_max` as
    answers arrive; otherwise it grows (`grown`) when labelers could not judge. A calibration item (`gold`) is never
    settled: each labeler gets it once, so its overlap grows as it is given out. `opened_xid` is the transaction that
    last put the comparison into a queue or moved it there (set by a trigger). Labelers whose place is already past it
    find it that way.

    A comparison kept for one labeler or one group is offered to nobody else. Only the first pair of a k-way ranking is
    offered; its answer yields the judgments of all pairs with the same `ranking_id`. A `repeat` shows a labeler a pair
    that they judged before (`repeat_of_id`), with sides swapped; a calibration item may be a copy of a comparison too.
    Asking again under a newer rubric makes a new comparison (`relabel_of_id`); the old one is withdrawn and its
    judgments are superseded.

    `rubric_id` may be an older version until a labeler gets the comparison: a trigger on lease sets the newest version
    when it is first handed out. Triggers on judgment and lease update `judgment_count` and `lease_count`; the check
    below then makes it impossible to give a comparison to more people than it wants.
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
        # A pair chosen for what it is likely to show cannot measure how often people prefer a policy.
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
    # the round whose samples opened it
    round_id: Mapped[int | None] = mapped_column(ForeignKey("round.id"), index=True)
    purpose: Mapped[str]
    overlap: Mapped[int]
    overlap_max: Mapped[int | None]  # None: the overlap is fixed
    grown: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    labeler_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    group_id: Mapped[int | None] = mapped_column(ForeignKey("labeler_group.id"))
    repeat_of_id: Mapped[int | None] = mapped_column(ForeignKey("comparison.id"))
    relabel_of_id: Mapped[int | None] = mapped_column(ForeignKey("comparison.id"))
    ranking_id: Mapped[int | None] = mapped_column(ForeignKey("ranking.id"))
    offered: Mapped[bool] = mapped_column(server_default="true")
    # How the pair was chosen: the selection policy (app.domain.pairing) and the numbers it used.
    selection: Mapped[Json] = mapped_column(server_default="{}")
    priority: Mapped[int] = mapped_column(server_default="0")
    gold: Mapped[int | None] = mapped_column(SmallInteger)
    # Only for imported pairs: the data set's own name for the pair, and a digest that detects a second import.
    external_id: Mapped[str | None]
    digest: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="open")
    judgment_count: Mapped[int] = mapped_column(server_default="0")
    lease_count: Mapped[int] = mapped_column(server_default="0")
    opened_xid: Mapped[int] = mapped_column(server_default=text("(pg_current_xact_id())::text::bigint"))
    # Written when the comparison settles: the share of judgment pairs on the same side, and the consensus preference.
    agreement: Mapped[float | None] = mapped_column()
    consensus: Mapped[float | None] = mapped_column()
    # Posterior by the project's consensus method: that B is better (a tie counts half), and of a tie.
    p_b: Mapped[float | None]
    p_tie: Mapped[float | None]
    # The newest reward model that read it: its prediction, its id, and whether it was trained on this comparison.
    reward_p_b: Mapped[float | None]
    reward_model_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    reward_trained: Mapped[bool] = mapped_column(server_default="false")
    # review_reason: why it went to review. flagged: a live judgment carries a content flag that no reviewer has
    # handled. conflict_dismissed: a reviewer sided with the people against the reward model.
    review_reason: Mapped[str | None]
    flagged: Mapped[bool] = mapped_column(server_default="false")
    conflict_dismissed: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[Now]
    settled_at: Mapped[datetime | None]


# Order of the queue. The priority is negated so that one index range holds everything after a place.
QUEUE_ORDER = (-Comparison.priority, Comparison.id)


class Ranking(Base):
    """K completions of one prompt to be ranked. Its pairs are comparisons; only the first pair is offered."""

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
    # The order in which a ranking's completions are shown; None for a pair.
    shown: Mapped[list[Any] | None]
    state: Mapped[str] = mapped_column(server_default="live")
    reason: Mapped[str] = mapped_column(server_default="")  # why it was skipped
    created_at: Mapped[Now]
    expires_at: Mapped[datetime]  # or when it ended, if it went back unanswered


class QueuePlace(Base):
    """How far a labeler has come in a queue: nothing before this place (by priority, then id) is left for them.

    That covers what was in the queue before `checked_xid`. Comparisons that came in later have a later `opened_xid` and
    are looked up separately. So finding the next task never scans judged comparisons, however many there are.
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
    )  # None: the open queue
    priority: Mapped[int | None]  # None: nothing is left
    comparison_id: Mapped[int | None]  # only a marker; the comparison may no longer exist
    checked_xid: Mapped[int]


class Judgment(Base):
    """One labeler's answer. A trigger makes it append-only: an edit is a new row, and the old row gets `superseded_at`.

    `preference` is None if the labeler could not judge; a tie with `both_bad` says that neither response is any good.
    `aspects` holds preferences by aspect of the rubric, `flags` the names of its content flags.
    """

    __tablename__ = "judgment"
    __table_args__ = (
        # A judgment has the comparison's rubric.
        ForeignKeyConstraint(["comparison_id", "rubric_id"], ["comparison.id", "comparison.rubric_id"]),
        Index(
            "uq_judgment_one_live",
            "comparison_id",
            "labeler_id",
            unique=True,
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index("ix_judgment_labeler", "labeler_id", "created_at"),
        # Includes superseded rows: nobody is asked twice, and moving a comparison to a new rubric checks the foreign
        # key.
        Index("ix_judgment_comparison", "comparison_id", "labeler_id"),
        CheckConstraint("preference BETWEEN -4 AND 4", name="preference_range"),
        CheckConstraint("NOT both_bad OR preference = 0", name="both_bad_is_a_tie"),
        CheckConstraint("(superseded_at IS NULL) = (superseded_for IS NULL)", name="superseded_for_something"),
        one_of("superseded_for", SUPERSEDED_FOR),
        CheckConstraint("duration_ms >= 0", name="duration_not_negative"),
        # Imported data bring their own times, and pages count by week.
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
    swapped: Mapped[bool | None]  # None: the side shown is unknown (imported)
    duration_ms: Mapped[int | None]
    idempotency_key: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[Now]
    superseded_at: Mapped[datetime | None]
    superseded_for: Mapped[str | None]


class Adjudication(Base):
    """An admin's verdict on a split comparison; it replaces the judgments."""

    __tablename__ = "adjudication"
    __table_args__ = (CheckConstraint("verdict BETWEEN -4 AND 4", name="verdict_range"),)

    id: Mapped[Id]
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id"), unique=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    verdict: Mapped[int] = mapped_column(SmallInteger)
    note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Now]
