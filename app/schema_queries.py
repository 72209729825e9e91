"""What migrations ask of the database: their turn, and the queue library's own migration files."""

import time
from collections.abc import Iterable
from pathlib import Path

from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, text

TURN = {"key": 7215001}  # of the advisory lock
PAUSE_SECONDS = 0.2


def take_turn(connection: Connection) -> None:
    """Waits until nobody else migrates. The turn ends with `end_turn`, or with the connection.

    It asks again and again instead of waiting in one statement: CREATE INDEX CONCURRENTLY waits for statements that
    began before it, and whoever builds the index has the turn.
    """
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), TURN):
        # For whoever looks at pg_stat_activity.
        connection.execute(text("SET application_name = 'prefloop migrate, waiting'"))
        connection.commit()
        time.sleep(PAUSE_SECONDS)
    connection.execute(text("RESET application_name"))
    connection.commit()


def end_turn(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_unlock(:key)"), TURN)
    connection.commit()


def limit_waiting(connection: Connection, lock_seconds: float) -> None:
    """Statements of a migration may take as long as they need. They may not wait long for a table that is in use:
    whoever asks for the table after them waits behind them."""
    limits = "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', :ms, false)"
    connection.execute(text(limits), {"ms": str(round(1000 * lock_seconds))})
    connection.commit()


def queue_files() -> list[Path]:
    """The installed queue library's migration files, in the order in which they are applied: their names begin with the
    library's version and a number, and all of a version's `pre` files come before its `post` files."""
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def applied_queue_files(connection: Connection) -> set[str]:
    """Names of the files that this database has had. The library leaves it to its users to keep this record."""
    if connection.scalar(text("SELECT to_regclass('queue_migration')")) is None:
        return set()
    return set(connection.scalars(text("SELECT name FROM queue_migration")))


def apply_queue_files(connection: Connection, files: Iterable[Path]) -> None:
    """Applies the files that this database has not had, each in a transaction with its record.

    A new database gets all of them, from the first version on, so that there is one way only. What results is what the
    library's own file for new databases makes (a test compares).
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
        driver.execute(file.read_text(encoding="utf-8"))  # several statements, and no parameters: % stays as it is
        connection.execute(text("INSERT INTO queue_migration (name) VALUES (:name)"), {"name": file.name})
        connection.commit()
