"""Rules for rounds that start automatically."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0002"
down_revision = "r0001"


def upgrade() -> None:
    op.add_column("project", sa.Column("automatic", postgresql.JSONB(), nullable=True))
