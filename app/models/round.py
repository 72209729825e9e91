"""Rounds, their runs, and the metrics, snapshots and model versions of these runs."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now, one_of

ROUND_STATES = ("freezing", "reward", "policy", "sampling", "evaluating", "done", "failed", "cancelled")
ALGORITHMS = ("sft", "dpo", "on_policy_dpo", "best_of_n", "ppo", "rloo", "grpo")
ACTIVE_ROUND = "state NOT IN ('done', 'failed', 'cancelled')"
RUN_KINDS = (
    *("freeze", "sample", "reward", *ALGORITHMS, "evaluate"),
    *("judge", "red_team", "playground", "revise", "suites"),
)
RUN_STATES = ("queued", "running", "succeeded", "failed", "cancelled")
MODEL_ROLES = ("base", "sft", "reward", "policy")


class Snapshot(Base):
    """A frozen, content-hashed file of exactly the rows a round reads. Rounds that read the same rows
    share the file."""

    __tablename__ = "snapshot"

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    digest: Mapped[str]  # SHA-256 of the uncompressed lines
    location: Mapped[str]  # in the artifact store; lines are app.rows.PairRow, DemonstrationRow, or ThumbRow
    counts: Mapped[Json]
    consensus: Mapped[str | None]  # the method of its posteriors; None: it holds demonstrations or thumbs
    created_at: Mapped[Now]  # its rows were read as of this moment


class SnapshotComparison(Base):
    """Membership of a comparison in a snapshot: tells which comparisons a new round would read again."""

    __tablename__ = "snapshot_comparison"
    __table_args__ = (Index("ix_snapshot_comparison_comparison", "comparison_id"),)

    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"), primary_key=True)
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparison.id"), primary_key=True)


class SnapshotDemonstration(Base):
    """Membership of a demonstration in a snapshot."""

    __tablename__ = "snapshot_demonstration"
    __table_args__ = (Index("ix_snapshot_demonstration_demonstration", "demonstration_id"),)

    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"), primary_key=True)
    demonstration_id: Mapped[int] = mapped_column(ForeignKey("demonstration.id"), primary_key=True)


class SnapshotThumb(Base):
    """A thumb that is counted in a snapshot's row for a response."""

    __tablename__ = "snapshot_thumb"
    __table_args__ = (Index("ix_snapshot_thumb_thumb", "thumb_id"),)

    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"), primary_key=True)
    thumb_id: Mapped[int] = mapped_column(ForeignKey("thumb.id"), primary_key=True)


class Round(Base):
    """One round: snapshot, reward model, policy, samples, evaluation; see app.domain.rounds."""

    __tablename__ = "round"
    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        Index("uq_round_one_active", "project_id", unique=True, postgresql_where=text(ACTIVE_ROUND)),
        one_of("state", ROUND_STATES),
        one_of("algorithm", ALGORITHMS),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    number: Mapped[int]
    state: Mapped[str]
    algorithm: Mapped[str]
    config: Mapped[Json]  # app.rounds.forms.RoundConfig
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshot.id"))  # None until it is frozen
    ptx_snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshot.id"))  # demonstrations that PPO mixes in
    thumbs_snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshot.id"))  # thumbs that KTO learns from
    # The project's reference model when the round began; the round's KL is measured against it.
    reference_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    policy_before_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    policy_after_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    reward_model_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    # Whether the new policy became the project's, at the round's end or by an operator later. By now another may be.
    adopted: Mapped[bool | None]
    # Whether the round is evaluated only by suites: supervised fine-tuning when there is no reward model.
    takes_suites: Mapped[bool] = mapped_column(server_default="false")
    error: Mapped[str | None]
    started_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]
    finished_at: Mapped[datetime | None]


class Run(Base):
    """One job of the worker. Its spec is complete and frozen, so a retry repeats the same job."""

    __tablename__ = "run"
    __table_args__ = (
        one_of("kind", RUN_KINDS),
        one_of("state", RUN_STATES),
        Index("ix_run_project", "project_id", "id"),
        Index("ix_run_round", "round_id"),
        Index("ix_run_unfinished", "state", postgresql_where=text("state IN ('queued', 'running')")),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    round_id: Mapped[int | None] = mapped_column(ForeignKey("round.id"))
    kind: Mapped[str]
    spec: Mapped[Json]  # app.specs.RunSpec
    state: Mapped[str] = mapped_column(server_default="queued")
    cancel_requested: Mapped[bool] = mapped_column(server_default="false")
    attempts: Mapped[int] = mapped_column(server_default="0")
    attempts_since_checkpoint: Mapped[int] = mapped_column(server_default="0")
    progress_done: Mapped[int] = mapped_column(server_default="0")
    progress_total: Mapped[int] = mapped_column(server_default="0")
    progress_message: Mapped[str] = mapped_column(server_default="")
    device: Mapped[str | None]  # the device of the last attempt
    tokens_per_second: Mapped[float | None]  # for what the run was doing when it last reported
    seconds_left: Mapped[float | None]  # for the same, as of its heartbeat
    log: Mapped[str] = mapped_column(server_default="")  # the last part of it
    result: Mapped[Json | None]
    error: Mapped[str | None]
    created_at: Mapped[Now]
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Metric(Base):
    """One number of a run at a step. `slice` is '' for all data, else for example `domain=safety`."""

    __tablename__ = "metric"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    slice: Mapped[str] = mapped_column(primary_key=True, server_default="")
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]


class ModelVersion(Base):
    """A model, traceable through its run to the snapshot, judgments and rubric."""

    __tablename__ = "model_version"
    __table_args__ = (one_of("role", MODEL_ROLES), Index("ix_model_version_project_role", "project_id", "role", "id"))

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    role: Mapped[str]
    name: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id", use_alter=True))
    base: Mapped[str]  # location of the full weights
    adapter: Mapped[str | None]  # location of the PEFT adapter on top of them
    digest: Mapped[str | None]
    card: Mapped[Json] = mapped_column(server_default="{}")
    created_at: Mapped[Now]
