"""SQL for migrations: taking turns, lock limits, and the queue library's own migration files."""

import time
from collections.abc import Iterable
from pathlib import Path

from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, text

TURN = {"key": 7215001}  # key of the advisory lock
PAUSE_SECONDS = 0.2


def take_turn(connection: Connection) -> None:
    """Wait until nobody else migrates. The turn ends with `end_turn`, or with the connection.

    This polls instead of waiting in one statement: CREATE INDEX CONCURRENTLY waits for earlier statements, so it would
    wait for this one, while the migration that builds the index holds the turn.
    """
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), TURN):
        # Visible in pg_stat_activity.
        connection.execute(text("SET application_name = 'prefloop migrate, waiting'"))
        connection.commit()
        time.sleep(PAUSE_SECONDS)
    connection.execute(text("RESET application_name"))
    connection.commit()


def end_turn(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_unlock(:key)"), TURN)
    connection.commit()


def limit_waiting(connection: Connection, lock_seconds: float) -> None:
    """Remove a migration's statement limit, and set a short limit for waiting for a table in use.

    A migration that waits for a table blocks everybody who asks for the table after it.
    """
    limits = "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', :ms, false)"
    connection.execute(text(limits), {"ms": str(round(1000 * lock_seconds))})
    connection.commit()


def queue_files() -> list[Path]:
    """Return the installed queue library's migration files, in the order in which they are applied.

    Their names begin with the library's version and a number. All of a version's `pre` files come before its `post`
    files.
    """
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def applied_queue_files(connection: Connection) -> set[str]:
    """Return names of the files that this database has had. The library leaves this record to its users."""
    if connection.scalar(text("SELECT to_regclass('queue_migration')")) is None:
        return set()
    return set(connection.scalars(text("SELECT name FROM queue_migration")))


def apply_queue_files(connection: Connection, files: Iterable[Path]) -> None:
    """Apply the files that this database has not had, each in a transaction with its record.

    A new database gets all files from the first version on, so that there is only one way. The result is the same as
    with the library's own file for new databases (a test compares them).
    """
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS queue_migration"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    )
    applied = applied_queue_files(connection)
    connection.commit()
    for file in files:
        if file.name in applied:
            continue
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute(file.read_text(encoding="utf-8"))  # several statements and no parameters, so % stays as it is
        connection.execute(text("INSERT INTO queue_migration (name) VALUES (:name)"), {"name": file.name})
        connection.commit()
