"""Suites: standing evaluations with versions, and the results of each round's policies."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0003"
down_revision = "r0002"

FINAL = """
CREATE TRIGGER suite_version_is_final BEFORE UPDATE OR DELETE ON suite_version
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.add_column("round", sa.Column("takes_suites", sa.Boolean(), server_default="false", nullable=False))
    op.create_table(
        "suite",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("largest_loss", sa.Float(), nullable=True),
        sa.Column("bound", sa.Text(), server_default="high", nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("bound IN ('high', 'low')", name=op.f("ck_suite_bound_known")),
        sa.CheckConstraint("largest_loss BETWEEN 0 AND 1", name=op.f("ck_suite_largest_loss_range")),
        sa.CheckConstraint("source IN ('file', 'starter', 'red_team')", name=op.f("ck_suite_source_known")),
        sa.ForeignKeyConstraint(["created_by"], ["user_account.id"], name=op.f("fk_suite_created_by")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_suite_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_suite")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_suite_project_id_name")),
    )
    op.create_table(
        "suite_version",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("suite_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("cases", sa.BigInteger(), nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("cases > 0", name=op.f("ck_suite_version_has_cases")),
        sa.ForeignKeyConstraint(["created_by"], ["user_account.id"], name=op.f("fk_suite_version_created_by")),
        sa.ForeignKeyConstraint(["suite_id"], ["suite.id"], name=op.f("fk_suite_version_suite_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_suite_version")),
        sa.UniqueConstraint("suite_id", "number", name=op.f("uq_suite_version_suite_id_number")),
    )
    op.create_table(
        "suite_result",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("slice", sa.Text(), server_default="", nullable=False),
        sa.Column("cases", sa.BigInteger(), nullable=False),
        sa.Column("passed", sa.BigInteger(), nullable=False),
        sa.Column("before", sa.BigInteger(), nullable=False),
        sa.Column("gained", sa.BigInteger(), nullable=False),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "cases > 0 AND gained >= 0 AND lost >= 0 AND passed - gained = before - lost"
            " AND passed >= gained AND passed + lost <= cases",
            name=op.f("ck_suite_result_adds_up"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_suite_result_run_id")),
        sa.ForeignKeyConstraint(["version_id"], ["suite_version.id"], name=op.f("fk_suite_result_version_id")),
        sa.PrimaryKeyConstraint("run_id", "version_id", "slice", name=op.f("pk_suite_result")),
    )
    op.create_index("ix_suite_result_version", "suite_result", ["version_id"])
    op.execute(FINAL)


def downgrade() -> None:
    """Not supported: restore a backup instead."""
