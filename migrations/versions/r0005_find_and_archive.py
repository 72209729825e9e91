"""Indexes in which the table of comparisons reads a page, and when a project was archived.

The index by state now ends with the id; it stands in for the one it had before.
"""

from alembic import op

revision = "r0005"
down_revision = "r0004"


def upgrade() -> None:
    # A run that was cut off below has done this already.
    op.execute("ALTER TABLE project ADD COLUMN IF NOT EXISTS archived_at TIMESTAMP WITH TIME ZONE")
    with op.get_context().autocommit_block():
        for name, columns in (("in_order", "project_id, id"), ("state", "project_id, state, id")):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ix_comparison_{name}")
            op.execute(f"CREATE INDEX CONCURRENTLY ix_comparison_{name} ON comparison ({columns})")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_comparison_project_state")
