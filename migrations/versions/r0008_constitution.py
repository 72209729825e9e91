"""Principles of a rubric, what AI critics revise by them and where that is marked; runs of suites outside rounds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0008"
down_revision = "r0007"

# Few rows: checking them takes a moment.
RUN_KINDS = """
ALTER TABLE run DROP CONSTRAINT ck_run_kind_known, ADD CONSTRAINT ck_run_kind_known CHECK (
    kind IN ('freeze', 'sample', 'reward', 'sft', 'dpo', 'on_policy_dpo', 'best_of_n', 'ppo', 'rloo', 'grpo',
    'evaluate', 'judge', 'red_team', 'playground', 'revise', 'suites'))
"""


def upgrade() -> None:
    op.execute(RUN_KINDS)
    op.add_column(
        "rubric",
        sa.Column("principles", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
    )
    for table in ("completion", "demonstration"):
        op.add_column(table, sa.Column("ai_revised", sa.Boolean(), server_default="false", nullable=False))
    op.create_table(
        "ai_revision",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("judge_id", sa.BigInteger(), nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=False),
        sa.Column("completion_id", sa.BigInteger(), nullable=False),
        sa.Column("principle", sa.Text(), nullable=False),
        sa.Column("critique", sa.Text(), server_default="", nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("revised_id", sa.BigInteger(), nullable=True),
        sa.Column("demonstration_id", sa.BigInteger(), nullable=True),
        sa.Column("served_model", sa.Text(), server_default="", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost", sa.Float(), nullable=True),
        sa.Column("ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("outcome IN ('revised', 'unchanged', 'failed')", name=op.f("ck_ai_revision_outcome_known")),
        sa.CheckConstraint("(outcome = 'revised') = (text IS NOT NULL)", name=op.f("ck_ai_revision_revised_has_text")),
        sa.CheckConstraint("(outcome = 'failed') = (error IS NOT NULL)", name=op.f("ck_ai_revision_failed_has_error")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_ai_revision_run_id")),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], name=op.f("fk_ai_revision_judge_id")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_ai_revision_rubric_id")),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_ai_revision_completion_id")),
        sa.ForeignKeyConstraint(["revised_id"], ["completion.id"], name=op.f("fk_ai_revision_revised_id")),
        sa.ForeignKeyConstraint(
            ["demonstration_id"], ["demonstration.id"], name=op.f("fk_ai_revision_demonstration_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ai_revision")),
        sa.UniqueConstraint("run_id", "completion_id", name=op.f("uq_ai_revision_run_id_completion_id")),
    )
    op.create_index("ix_ai_revision_completion", "ai_revision", ["completion_id"])
    op.create_index("ix_ai_revision_revised", "ai_revision", ["revised_id"])
    op.create_index("ix_ai_revision_demonstration", "ai_revision", ["demonstration_id"])
