"""Columns for the page of a running run: device, speed, remaining time, and the end of its log."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"


def upgrade() -> None:
    op.add_column("run", sa.Column("device", sa.Text()))
    op.add_column("run", sa.Column("tokens_per_second", sa.Float()))
    op.add_column("run", sa.Column("seconds_left", sa.Float()))
    op.add_column("run", sa.Column("log", sa.Text(), nullable=False, server_default=""))
