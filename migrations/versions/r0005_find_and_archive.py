"""Indexes in which the table of comparisons reads a page; when a project was archived; deleting an empty project.

The index by state now ends with the id; it stands in for the one it had before. Whoever deletes a project says so for
their transaction: else what is append-only stays.
"""

from alembic import op

revision = "r0005"
down_revision = "r0004"

REFUSE_CHANGE = """
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('prefloop.deletes_project', true) = 'yes' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
"""


def upgrade() -> None:
    op.execute(REFUSE_CHANGE)
    # A run that was cut off below has done this already.
    op.execute("ALTER TABLE project ADD COLUMN IF NOT EXISTS archived_at TIMESTAMP WITH TIME ZONE")
    with op.get_context().autocommit_block():
        for name, columns in (("in_order", "project_id, id"), ("state", "project_id, state, id")):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ix_comparison_{name}")
            op.execute(f"CREATE INDEX CONCURRENTLY ix_comparison_{name} ON comparison ({columns})")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_comparison_project_state")
