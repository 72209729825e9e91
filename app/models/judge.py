"""AI judges: endpoints that judge comparisons beside people. What they say stands here and in no table of people's."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now


class Judge(Base):
    """An OpenAI-compatible endpoint and a model there. Another address or model is another judge.

    Its key is in the worker's environment (`key_variable`), or here, sealed with the service's secret key.
    """

    __tablename__ = "judge"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        CheckConstraint("key_variable IS NULL OR sealed_key IS NULL", name="one_key"),
        CheckConstraint("prompt_price >= 0 AND completion_price >= 0", name="prices_not_negative"),
        CheckConstraint("concurrency BETWEEN 1 AND 64", name="concurrency_range"),
        CheckConstraint("retries BETWEEN 0 AND 10", name="retries_range"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    url: Mapped[str]  # up to and including /v1
    model: Mapped[str]  # the name under which the endpoint serves it
    key_variable: Mapped[str | None]
    sealed_key: Mapped[str | None]  # app.judges.keys
    prompt_price: Mapped[float | None]  # per million tokens, in the operator's currency
    completion_price: Mapped[float | None]
    timeout_seconds: Mapped[float] = mapped_column(server_default="60")
    retries: Mapped[int] = mapped_column(SmallInteger, server_default="4")
    concurrency: Mapped[int] = mapped_column(SmallInteger, server_default="4")
    max_tokens: Mapped[int] = mapped_column(server_default="512")
    off_at: Mapped[datetime | None]
    tested_at: Mapped[datetime | None]  # of the last test
    test_error: Mapped[str | None]  # why that failed
    served_model: Mapped[str | None]  # what the endpoint called its model then
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]


class JudgeJudgment(Base):
    """What a judge said of a comparison under a rubric version, once with A first and once with B first.

    `first` and `second` are -1 for A, 0 for a tie, 1 for B; `verdict` is a tie where they differ. Where an answer could
    not be read there is an `error` instead, and the judge is asked again by the next run. `is_anchor`: of the frozen
    set that each run judges again; such a row trains nothing and stands beside the judge's own first judgment.
    """

    __tablename__ = "judge_judgment"
    __table_args__ = (
        CheckConstraint("(error IS NULL) = (verdict IS NOT NULL)", name="verdict_or_error"),
        CheckConstraint(
            "verdict IS NULL OR (first BETWEEN -1 AND 1 AND second BETWEEN -1 AND 1"
            " AND verdict = CASE WHEN first = second THEN first ELSE 0 END)",
            name="verdict_of_both",
        ),
        Index(
            "uq_judge_judgment_one",
            "judge_id",
            "rubric_id",
            "comparison_id",
            unique=True,
            postgresql_where=text("NOT is_anchor"),
        ),
        Index("uq_judge_judgment_anchor", "run_id", "comparison_id", unique=True, postgresql_where=text("is_anchor")),
        Index("ix_judge_judgment_comparison", "comparison_id"),
    )

    id: Mapped[Id]
    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"))
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id", ondelete="CASCADE"))
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    is_anchor: Mapped[bool] = mapped_column(server_default="false")
    first: Mapped[int | None] = mapped_column(SmallInteger)
    second: Mapped[int | None] = mapped_column(SmallInteger)
    verdict: Mapped[int | None] = mapped_column(SmallInteger)
    error: Mapped[str | None]
    said: Mapped[list[Any]] = mapped_column(server_default="[]")  # the end of both answers
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    cost: Mapped[float | None]  # by the prices of that time
    ms: Mapped[int] = mapped_column(server_default="0")
    served_model: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Now]


class JudgeAdmission(Base):
    """The outcome of the alternative annotator test of a judge under a rubric version. The newest one counts."""

    __tablename__ = "judge_admission"
    __table_args__ = (
        CheckConstraint("paused_at IS NULL OR admitted", name="only_admitted_are_paused"),
        Index("ix_judge_admission_judge", "judge_id", "rubric_id", "id"),
    )

    id: Mapped[Id]
    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"))
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    admitted: Mapped[bool]
    reason: Mapped[str] = mapped_column(server_default="")  # why not, in words
    epsilon: Mapped[float]
    q: Mapped[float]
    omega: Mapped[float | None]  # none: too little to test
    advantage: Mapped[float | None]
    agreement: Mapped[float | None]  # with people on shared items, at this time: below it the judge is paused
    items: Mapped[int] = mapped_column(server_default="0")  # behind the agreement
    # What changed judgments since are told by: agreement, flips and position as of now, on the anchors.
    baseline: Mapped[Json] = mapped_column(server_default="{}")
    result: Mapped[list[Any]] = mapped_column(server_default="[]")  # app.domain.alternative_annotator.Beside, a labeler
    anchors: Mapped[list[Any]] = mapped_column(server_default="[]")  # ids of comparisons, and what was said of them
    served_model: Mapped[str] = mapped_column(server_default="")
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]
    paused_at: Mapped[datetime | None]
    pause_reason: Mapped[str] = mapped_column(server_default="")


class SnapshotJudgeJudgment(Base):
    """That a snapshot's row of a comparison that nobody judged counts a judge's judgment."""

    __tablename__ = "snapshot_judge_judgment"
    __table_args__ = (Index("ix_snapshot_judge_judgment_judgment", "judgment_id"),)

    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"), primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judge_judgment.id"), primary_key=True)
