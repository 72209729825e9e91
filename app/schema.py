"""The database's schema: its revision, and migrating to the newest one. docs/upgrading.md covers both sides."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool
from sqlalchemy.exc import DBAPIError

from app import schema_queries as queries
from app.db import sqlalchemy_url
from app.errors import Unavailable

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
VERSIONS = (MIGRATIONS / "versions",)
LOCK_SECONDS = 5.0
# Before the first release, 0001 was the only revision and changed from commit to commit.
BEFORE_RELEASE = "0001"
RELEASED = re.compile(r"r\d{4}")  # ordered by number
# Tables without a model: Alembic's, the queue library's, and the record of its applied files.
OTHERS = ("alembic_", "procrastinate_", "queue_migration")

GUIDE = "docs/upgrading.md says how."


class Found(NamedTuple):
    """The state of a database: its revision (none before the first migration), and the queue library's
    applied files."""

    revisions: tuple[str, ...]
    queue_files: set[str]


def is_ours(name: str | None, type_: str, _parents: object) -> bool:
    """Tell whether Alembic compares this object with the models."""
    return type_ != "table" or not (name or "").startswith(OTHERS)


def migrate(
    url: str, *, lock_seconds: float = LOCK_SECONDS, versions: Sequence[Path] = VERSIONS, to: str = "head"
) -> None:
    """Bring the database to the newest revision, and the queue's tables to the installed queue library's version.

    Args:
        lock_seconds: how long a statement may wait for a table that is in use.
        versions: folders of revisions.
        to: the last revision to apply.

    Raises:
        Unavailable: the schema cannot be upgraded, or the upgrade failed; says what to do.
    """
    _refuse_unknown(_found(url), versions)
    config = _config(versions, url)
    config.attributes["lock_seconds"] = lock_seconds
    try:
        command.upgrade(config, to)
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise _failed(url, cause, lock_seconds) from error


def require_schema(url: str, *, versions: Sequence[Path] = VERSIONS) -> None:
    """Check that the schema is current, for commands that leave migrating to `prefloop migrate`.

    Raises:
        Unavailable: the database has no schema, or another version's; says what to do.
    """
    found, head = _found(url), revisions(versions)[-1]
    _refuse_unknown(found, versions)
    if not found.revisions:
        raise Unavailable("The database has no schema yet.", "Run `prefloop migrate` first.")
    if found.revisions != (head,):
        raise Unavailable(
            f"The database is of an older Prefloop: its schema is {found.revisions[0]}, and this version works with "
            f"{head}.",
            f"Make a backup, then run `prefloop migrate`. {GUIDE}",
        )
    if {file.name for file in queries.queue_files()} - found.queue_files:
        raise Unavailable(
            "The queue's tables in the database are of an older version than the installed queue library.",
            f"Make a backup, then run `prefloop migrate`. {GUIDE}",
        )


def revisions(versions: Sequence[Path] = VERSIONS) -> list[str]:
    """Return ids of all revisions, the oldest first."""
    return [each.revision for each in _script(versions).walk_revisions()][::-1]


def has_schema(url: str) -> bool:
    """Tell whether this database has ever been migrated."""
    return bool(_found(url).revisions)


def _config(versions: Sequence[Path], url: str | None = None) -> Config:
    config = Config()
    options = {
        "script_location": str(MIGRATIONS),
        "path_separator": "newline",
        "version_locations": "\n".join(map(str, versions)),
    }
    if url is not None:
        options["sqlalchemy.url"] = sqlalchemy_url(url)
    for name, value in options.items():
        config.set_main_option(name, value.replace("%", "%%"))
    return config


def _refuse_unknown(database: Found, versions: Sequence[Path]) -> None:
    """Raise Unavailable if the database's schema is not from this version or an earlier release."""
    known = revisions(versions)
    for found in database.revisions:
        if found in known:
            continue
        if found == BEFORE_RELEASE:
            raise Unavailable(
                "The database was made before Prefloop's first release, and its schema cannot be upgraded.",
                "With the Prefloop that made it, write each project by `prefloop export --kind full`. Then import the "
                f"files into a new database with this one. {GUIDE}",
            )
        if RELEASED.fullmatch(found) and found > known[-1]:
            raise Unavailable(
                f"The database was upgraded by a newer Prefloop: its schema is {found}, and this version knows none "
                f"after {known[-1]}.",
                "Install that version or a newer one, or restore the backup that was made before the upgrade.",
            )
        raise Unavailable(
            f"The database's schema is {found}, which no released Prefloop made.",
            "Is DATABASE_URL the right database? If a changed Prefloop made it, start that one.",
        )
    # File names begin with the library's version: 03.04.00_50_post_….sql.
    newest = queries.queue_files()[-1].name
    if newer := max((name for name in database.queue_files if name > newest), default=None):
        raise Unavailable(
            f"The queue's tables in the database were upgraded by a newer procrastinate ({newer}).",
            "Install the Prefloop that upgraded them, or restore the backup that was made before the upgrade.",
        )


def _failed(url: str, cause: object, lock_seconds: float) -> Unavailable:
    found: tuple[str, ...] = ()
    with contextlib.suppress(DBAPIError):  # the database itself may have gone away
        found = _found(url).revisions
    stands = f"The schema is {found[0]} now, and the next attempt goes on from there." if found else ""
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        return Unavailable(
            f"The upgrade waited {lock_seconds:g} seconds for a table that is in use, and stopped. {stands}".strip(),
            "Stop the web services and workers, or wait until long exports and queries are done. Then run `prefloop "
            "migrate` again. PREFLOOP_MIGRATION_LOCK_SECONDS sets how long it waits.",
        )
    first = str(cause).partition("\n")[0]
    return Unavailable(
        f"The upgrade failed: {first.rstrip('.')}. {stands}".strip(),
        "Remove the cause and run `prefloop migrate` again, or restore the backup and the Prefloop from before. "
        "docs/upgrading.md says more.",
    )


def _script(versions: Sequence[Path]) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(versions))


def _found(url: str) -> Found:
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool)
    with engine.connect() as connection:
        heads = MigrationContext.configure(connection).get_current_heads()
        return Found(heads, queries.applied_queue_files(connection))
