"""What people say of answers that a monitor asked them to look at."""

import sqlalchemy as sa
from alembic import op

revision = "r0009"
down_revision = "r0008"


def upgrade() -> None:
    op.create_table(
        "monitor_review",
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("monitor", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("reviewer_id", sa.BigInteger(), nullable=False),
        sa.Column("reviewed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("verdict IN ('wanted', 'fault')", name=op.f("ck_monitor_review_verdict_known")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["user_account.id"], name=op.f("fk_monitor_review_reviewer_id")),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_monitor_review_round_id")),
        sa.PrimaryKeyConstraint("round_id", "monitor", name=op.f("pk_monitor_review")),
    )
