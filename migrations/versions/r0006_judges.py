"""AI judges: endpoints, what they said of comparisons, whether they were admitted, and which rows a snapshot holds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0006"
down_revision = "r0005"


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False)


def _now() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def _list(name: str) -> sa.Column[object]:
    return sa.Column(name, postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False)


def upgrade() -> None:
    op.create_table(
        "judge",
        _id(),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("key_variable", sa.Text(), nullable=True),
        sa.Column("sealed_key", sa.Text(), nullable=True),
        sa.Column("prompt_price", sa.Float(), nullable=True),
        sa.Column("completion_price", sa.Float(), nullable=True),
        sa.Column("timeout_seconds", sa.Float(), server_default="60", nullable=False),
        sa.Column("retries", sa.SmallInteger(), server_default="4", nullable=False),
        sa.Column("concurrency", sa.SmallInteger(), server_default="4", nullable=False),
        sa.Column("max_tokens", sa.BigInteger(), server_default="512", nullable=False),
        sa.Column("off_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("test_error", sa.Text(), nullable=True),
        sa.Column("served_model", sa.Text(), nullable=True),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        _now(),
        sa.CheckConstraint("key_variable IS NULL OR sealed_key IS NULL", name=op.f("ck_judge_one_key")),
        sa.CheckConstraint("prompt_price >= 0 AND completion_price >= 0", name=op.f("ck_judge_prices_not_negative")),
        sa.CheckConstraint("concurrency BETWEEN 1 AND 64", name=op.f("ck_judge_concurrency_range")),
        sa.CheckConstraint("retries BETWEEN 0 AND 10", name=op.f("ck_judge_retries_range")),
        sa.ForeignKeyConstraint(["created_by"], ["user_account.id"], name=op.f("fk_judge_created_by")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_judge_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_judge_project_id_name")),
    )
    op.create_table(
        "judge_judgment",
        _id(),
        sa.Column("judge_id", sa.BigInteger(), nullable=False),
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("is_anchor", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("first", sa.SmallInteger(), nullable=True),
        sa.Column("second", sa.SmallInteger(), nullable=True),
        sa.Column("verdict", sa.SmallInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        _list("said"),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost", sa.Float(), nullable=True),
        sa.Column("ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("served_model", sa.Text(), server_default="", nullable=False),
        _now(),
        sa.CheckConstraint("(error IS NULL) = (verdict IS NOT NULL)", name=op.f("ck_judge_judgment_verdict_or_error")),
        sa.CheckConstraint(
            "verdict IS NULL OR (first BETWEEN -1 AND 1 AND second BETWEEN -1 AND 1"
            " AND verdict = CASE WHEN first = second THEN first ELSE 0 END)",
            name=op.f("ck_judge_judgment_verdict_of_both"),
        ),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], name=op.f("fk_judge_judgment_judge_id")),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparison.id"], name=op.f("fk_judge_judgment_comparison_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_judge_judgment_rubric_id")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_judge_judgment_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_judgment")),
    )
    op.create_index(
        "uq_judge_judgment_one",
        "judge_judgment",
        ["judge_id", "rubric_id", "comparison_id"],
        unique=True,
        postgresql_where=sa.text("NOT is_anchor"),
    )
    op.create_index(
        "uq_judge_judgment_anchor",
        "judge_judgment",
        ["run_id", "comparison_id"],
        unique=True,
        postgresql_where=sa.text("is_anchor"),
    )
    op.create_index("ix_judge_judgment_comparison", "judge_judgment", ["comparison_id"])
    op.create_table(
        "judge_admission",
        _id(),
        sa.Column("judge_id", sa.BigInteger(), nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=False),
        sa.Column("admitted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("epsilon", sa.Float(), nullable=False),
        sa.Column("q", sa.Float(), nullable=False),
        sa.Column("omega", sa.Float(), nullable=True),
        sa.Column("advantage", sa.Float(), nullable=True),
        sa.Column("agreement", sa.Float(), nullable=True),
        sa.Column("items", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("baseline", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        _list("result"),
        _list("anchors"),
        sa.Column("served_model", sa.Text(), server_default="", nullable=False),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        _now(),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pause_reason", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("paused_at IS NULL OR admitted", name=op.f("ck_judge_admission_only_admitted_are_paused")),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], name=op.f("fk_judge_admission_judge_id")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_judge_admission_rubric_id")),
        sa.ForeignKeyConstraint(["created_by"], ["user_account.id"], name=op.f("fk_judge_admission_created_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_admission")),
    )
    op.create_index("ix_judge_admission_judge", "judge_admission", ["judge_id", "rubric_id", "id"])
    op.create_table(
        "snapshot_judge_judgment",
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("judgment_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_snapshot_judge_judgment_snapshot_id")),
        sa.ForeignKeyConstraint(
            ["judgment_id"], ["judge_judgment.id"], name=op.f("fk_snapshot_judge_judgment_judgment_id")
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "judgment_id", name=op.f("pk_snapshot_judge_judgment")),
    )
    op.create_index("ix_snapshot_judge_judgment_judgment", "snapshot_judge_judgment", ["judgment_id"])


def downgrade() -> None:
    """There is none: a backup goes back."""
