"""Trial, first of three: add a column, and a check that applies to new rows. Both lock the table only for a moment.

This is the example of docs/upgrading.md. Tests and `benchmarks.upgrade` put it after the newest revision; a real
revision names its predecessor instead.
"""

import sqlalchemy as sa
from alembic import op

from app.schema import revisions

revision = "r9001"
down_revision = revisions()[-1]


def upgrade() -> None:
    op.add_column("comparison", sa.Column("trial_length", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_comparison_trial_length_positive"), "comparison", "trial_length > 0", postgresql_not_valid=True
    )


def downgrade() -> None:
    """Not supported: restore a backup instead."""
