"""Trial, third of three: build an index while others write. An index from an interrupted run is built again."""

from alembic import op

revision = "r9003"
down_revision = "r9002"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_comparison_trial_length")
        op.execute("CREATE INDEX CONCURRENTLY ix_comparison_trial_length ON comparison (trial_length)")


def downgrade() -> None:
    """Not supported: restore a backup instead."""
