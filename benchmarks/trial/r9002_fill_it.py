"""Trial, second of three: fill the column in small transactions, then validate the check for the older rows.

It can be repeated: after an interruption, it continues with the rows that are still empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "r9002"
down_revision = "r9001"

ROWS = 2_000  # rows per transaction, few enough that others wait only for a moment
FILL = sa.text("""
    UPDATE comparison SET trial_length = 1 + length(a.text) + length(b.text)
    FROM completion AS a, completion AS b
    WHERE a.id = completion_a_id AND b.id = completion_b_id AND comparison.id IN (
        SELECT id FROM comparison WHERE id >= :first AND id < :next AND trial_length IS NULL
        ORDER BY id FOR NO KEY UPDATE
    )
""")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        last = connection.scalar(sa.text("SELECT coalesce(max(id), 0) FROM comparison"))
        for first in range(0, last + 1, ROWS):
            connection.execute(FILL, {"first": first, "next": first + ROWS})
        op.execute("ALTER TABLE comparison VALIDATE CONSTRAINT ck_comparison_trial_length_positive")


def downgrade() -> None:
    """Not supported: restore a backup instead."""
