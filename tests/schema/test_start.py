"""Commands that find another version's schema say which schema it is and what to do."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import text

from app import cli
from app.errors import Unavailable
from app.schema import VERSIONS, migrate, require_schema, revisions
from benchmarks.peer.processes import free_port
from benchmarks.upgrade import TRIAL
from tests.schema.databases import connect, new_database
from tests.waiting import wait_for
from trainer.service import worker

STATES = {
    "0001": ("was made before Prefloop's first release", "prefloop export --kind full"),
    "r9999": (f"upgraded by a newer Prefloop: its schema is r9999, and this version knows none after {revisions()[-1]}",
              "restore the backup"),
    "5f2c": ("schema is 5f2c, which no released Prefloop made", "Is DATABASE_URL the right database?"),
}  # fmt: skip
SLOW = """
import sys
from pathlib import Path
from app.schema import migrate
migrate(sys.argv[1], versions=[Path(each) for each in sys.argv[2:]], lock_seconds=60)
"""


def set_revision(url: str, revision: str) -> None:
    with connect(url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})


@pytest.fixture
def migrated_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with this version's schema; the settings refer to it."""
    with new_database(database_url, "head") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process and return its exit code."""
    monkeypatch.setattr(os, "_exit", sys.exit)  # this process must continue
    monkeypatch.setattr("sys.argv", ["prefloop", *command.split()])
    with pytest.raises(SystemExit) as ended:
        worker.main() if command == "worker" else cli.main()
    return int(str(ended.value.code))


@pytest.mark.parametrize("command", ["up", "web", "worker", "migrate", "migrate --starter", "user list"])
@pytest.mark.parametrize("revision", STATES)
def test_a_schema_that_is_not_ours_is_left_alone(
    migrated_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: str,
    command: str,
    revision: str,
) -> None:
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("PREFLOOP_PORT", str(free_port()))
    set_revision(migrated_database, revision)
    assert run(command, monkeypatch) == 1
    told = capsys.readouterr().err
    for part in STATES[revision]:
        assert part in told
    assert "Traceback" not in told
    with connect(migrated_database) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == revision


@pytest.mark.parametrize("command", ["web", "worker", "user list"])
def test_an_older_schema_waits_for_a_backup(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Only `migrate` and `up` upgrade."""
    # The database is that of a version that has these revisions.
    monkeypatch.setattr("app.schema.require_schema.__kwdefaults__", {"versions": TRIAL})
    assert run(command, monkeypatch) == 1
    told = capsys.readouterr().err
    assert f"is of an older Prefloop: its schema is {revisions()[-1]}, and this version works with r9003" in told
    assert "Make a backup, then run `prefloop migrate`" in told


def test_what_was_upgraded_is_newer_for_the_version_before(database_url: str) -> None:
    with new_database(database_url, "head") as url:
        migrate(url, versions=TRIAL)
        require_schema(url, versions=TRIAL)
        starts: list[Callable[[str], None]] = [require_schema, migrate]
        for start in starts:
            with pytest.raises(Unavailable, match="upgraded by a newer Prefloop: its schema is r9003"):
                start(url)


def test_an_upgrade_gives_up_on_a_table_in_use_and_goes_on_later(database_url: str) -> None:
    with new_database(database_url, "head") as url:
        with psycopg.connect(url) as other:
            other.execute("SELECT count(*) FROM comparison")  # a long export would hold this lock
            with pytest.raises(Unavailable) as refused:
                migrate(url, versions=TRIAL, lock_seconds=0.2)
        assert "waited 0.2 seconds for a table that is in use" in refused.value.message
        assert f"The schema is {revisions()[-1]} now" in refused.value.message
        assert "run `prefloop migrate` again" in refused.value.advice
        assert "PREFLOOP_MIGRATION_LOCK_SECONDS" in refused.value.advice
        require_schema(url)
        migrate(url, versions=TRIAL, lock_seconds=0.2)


def test_an_index_is_built_while_another_upgrade_waits_for_its_turn(database_url: str) -> None:
    """If it waited in a statement, the index would wait for that statement, and the statement for the index."""
    waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'prefloop migrate, waiting')"
    locked = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database " \
        "WHERE datname = current_database() AND NOT granted)"  # fmt: skip
    with new_database(database_url, "head") as url:
        command = [sys.executable, "-c", SLOW, url, *map(str, TRIAL)]
        with connect(url) as watch, psycopg.connect(url) as holder:
            holder.execute("SELECT count(*) FROM comparison")
            first = subprocess.Popen(command)
            wait_for(lambda: watch.scalar(text(locked)), "the first upgrade's wait for the table")
            second = subprocess.Popen(command)
            wait_for(lambda: watch.scalar(text(waits)), "the second upgrade's wait for its turn")
            holder.rollback()
            assert [first.wait(60), second.wait(60)] == [0, 0]
        require_schema(url, versions=TRIAL)


def test_the_trial_is_no_part_of_the_schema() -> None:
    assert "r9001" not in revisions(VERSIONS)
