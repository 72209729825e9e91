"""The queue's tables follow the installed queue library, by the library's own migration files."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from procrastinate.schema import SchemaManager
from sqlalchemy import text

from app import schema_queries as queries
from app.errors import Unavailable
from app.schema import migrate, require_schema
from app.settings import Settings
from tests.schema.catalogs import describe, difference
from tests.schema.databases import connect, new_database
from trainer.service.worker import Worker

OLDER = "03.02"  # without the changes of version 3.2 and later
DEFER = "SELECT procrastinate_defer_job_v1('runs', 'run', 0, :lock, NULL, CAST(:args AS jsonb), NULL)"
MIGRATE = "import sys; from app.schema import migrate; migrate(sys.argv[1])"


def migrate_with_an_older_library(url: str) -> None:
    older = [file for file in queries.queue_files() if file.name < OLDER]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "queue_files", lambda: older)
        migrate(url)


def test_the_files_make_what_the_library_makes_in_a_new_database(database_url: str) -> None:
    with new_database(database_url) as url, connect(url) as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute(SchemaManager.get_schema())
        wanted = describe(connection, queue=True)
    with new_database(database_url, "head") as url, connect(url) as connection:
        assert not difference(wanted, describe(connection, queue=True))
        assert queries.applied_queue_files(connection) == {file.name for file in queries.queue_files()}


def test_an_older_queue_comes_up_and_its_jobs_are_done(database_url: str, tmp_path: Path) -> None:
    with new_database(database_url) as url, new_database(database_url, "head") as fresh:
        migrate_with_an_older_library(url)
        with connect(url) as connection:
            for run_id in (1, 2, 3):
                connection.execute(text(DEFER), {"lock": f"run:{run_id}", "args": f'{{"run_id": {run_id}}}'})
            assert connection.scalar(text("SELECT to_regtype('procrastinate_job_to_defer_v1')")) is None
        with pytest.raises(Unavailable, match=r"older version than the installed queue library.*prefloop migrate"):
            require_schema(url)

        migrate(url)
        require_schema(url)
        with connect(url) as connection, connect(fresh) as other:
            assert not difference(describe(other, queue=True), describe(connection, queue=True))

        settings = Settings(home=tmp_path, database_url=url, _env_file=None)
        worker, done = Worker(settings, url), []
        worker.runner.execute = done.append  # type: ignore[method-assign]
        asyncio.run(worker.serve(until_empty=True))
        worker.engine.dispose()
        assert done == [1, 2, 3]


def test_migrating_again_changes_nothing(database_url: str) -> None:
    with new_database(database_url, "head") as url, connect(url) as connection:
        record = text("SELECT name, applied_at FROM queue_migration ORDER BY name")
        before = connection.execute(record).all()
        migrate(url)
        assert connection.execute(record).all() == before


def test_two_at_once_apply_each_file_once(database_url: str) -> None:
    with new_database(database_url) as url:
        migrate_with_an_older_library(url)
        both = [subprocess.Popen([sys.executable, "-c", MIGRATE, url]) for _ in range(2)]
        assert [each.wait(60) for each in both] == [0, 0]
        require_schema(url)


def test_a_queue_of_a_newer_library_is_named(database_url: str) -> None:
    with new_database(database_url, "head") as url:
        with connect(url) as connection:
            connection.execute(text("INSERT INTO queue_migration (name) VALUES ('99.00.00_01_pre_something.sql')"))
        for start in (require_schema, migrate):
            with pytest.raises(Unavailable, match="upgraded by a newer procrastinate"):
                start(url)
