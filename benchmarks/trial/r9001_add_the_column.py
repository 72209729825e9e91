"""Trial, first of three: add a column, and a check that holds for new rows. Both need the table for a moment only.

The example of docs/upgrading.md. Tests and `benchmarks.upgrade` put it after the newest revision, whichever that is; a
real revision names the one before it.
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
    """There is none: a backup goes back."""
