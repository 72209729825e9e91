"""Indexes for the page of a project's audit log: its newest events, of one kind or by one person."""

from alembic import op

revision = "r0007"
down_revision = "r0006"

INDEXES = {
    "ix_audit_event_newest": "project_id, id",
    "ix_audit_event_action": "project_id, action, id",
    "ix_audit_event_actor": "project_id, actor_id, id",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, columns in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON audit_event ({columns})")
