"""A database with rows in every table can be upgraded from every earlier revision, and loses nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, CheckConstraint, Column, Index, MetaData, text

from app.errors import Unavailable
from app.models import Base
from app.schema import VERSIONS, migrate, revisions
from benchmarks.upgrade import TRIAL
from tests.schema import rows
from tests.schema.catalogs import describe, difference
from tests.schema.databases import connect, new_database
from tests.schema.freeze import made_by, rows_file
from tests.schema.models import differences

# `table` or `table.column` that a revision removes or rewrites on purpose.
CHANGED: set[str] = set()


@contextlib.contextmanager
def filled(server_url: str, revision: str) -> Iterator[tuple[str, rows.Rows]]:
    """Yield the URL of a database at a revision with the rows of that day, and these rows."""
    before = rows.from_lines(rows_file(revision).read_text())
    with new_database(server_url, revision) as url:
        with connect(url) as connection:
            rows.write(connection, before)
            assert rows.read(connection, before) == before
        yield url, before


@pytest.mark.parametrize("revision", revisions())
def test_rows_of_every_revision_come_up_to_the_newest(database_url: str, revision: str) -> None:
    with filled(database_url, revision) as (url, before):
        migrate(url)
        with connect(url) as connection:
            assert rows.lost(connection, before, CHANGED) == []
            fresh = made_by(database_url, revisions()[-1])
            assert not difference(fresh, describe(connection)), "an upgraded database differs from a new one"


def test_a_trial_revision_comes_up_with_rows_and_agrees_with_its_models(database_url: str) -> None:
    with filled(database_url, revisions()[-1]) as (url, before):
        migrate(url, versions=TRIAL)
        with connect(url) as connection:
            assert rows.lost(connection, before) == []
            assert not difference(made_by(database_url, "head", TRIAL), describe(connection))
            query = "SELECT count(*) FROM comparison WHERE trial_length > 1"
            assert connection.scalar(text(query)) == len(before["comparison"])
        assert differences(database_url, url, trial_models()) == []


def trial_models() -> MetaData:
    """Return the models with the trial author's changes."""
    models = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(models)
    comparison = models.tables["comparison"]
    comparison.append_column(Column("trial_length", BigInteger, nullable=True))
    comparison.append_constraint(CheckConstraint("trial_length > 0", name="trial_length_positive"))
    Index("ix_comparison_trial_length", comparison.c.trial_length)
    return models


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DROP TRIGGER comparison_opened ON comparison", "the trigger comparison.comparison_opened is missing"),
        ("DROP FUNCTION count_lease CASCADE", "the function count_lease is missing"),
        ("CREATE FUNCTION unlisted() RETURNS int LANGUAGE sql AS 'SELECT 1'", "the function unlisted is not in"),
        ("ALTER TABLE project DROP CONSTRAINT ck_project_slug_form", "ck_project_slug_form"),
        ("DROP INDEX ix_thumb_labeler", "ix_thumb_labeler"),
        ("ALTER TABLE project ALTER overlap SET DEFAULT 3", "overlap"),
        ("ALTER TABLE thumb ADD CHECK (id > 0) NOT VALID", "NOT VALID"),
        ("DELETE FROM snapshot_thumb; DELETE FROM thumb WHERE NOT liked", "the row (1,) of thumb"),
        ("UPDATE project SET description = ''", "project.description of row (1,)"),
        ("ALTER TABLE lease DROP COLUMN shown", "lease.shown of row"),
        ("DROP TABLE queue_place", "the table queue_place"),
    ],
)
def test_a_broken_revision_is_found(database_url: str, tmp_path: Path, statement: str, told: str) -> None:
    """The differences from the models and lists, or the lost rows, show it."""
    with filled(database_url, revisions()[-1]) as (url, before):
        migrate(url, versions=(*VERSIONS, broken(tmp_path, statement)))
        with connect(url) as connection:
            found = rows.lost(connection, before) + differences(database_url, url, Base.metadata)
    assert told in "\n".join(found)


def test_a_revision_that_fails_with_rows_leaves_the_database_as_it_was(database_url: str, tmp_path: Path) -> None:
    """It works on an empty database. With rows it fails halfway, and everything before that is undone."""
    statement = "DROP TRIGGER comparison_opened ON comparison; ALTER TABLE thumb ADD COLUMN colour text NOT NULL"
    versions = (*VERSIONS, broken(tmp_path, statement))
    made_by(database_url, "r9001", versions)
    with filled(database_url, revisions()[-1]) as (url, before):
        with pytest.raises(Unavailable) as refused:
            migrate(url, versions=versions)
        assert 'column "colour" of relation "thumb" contains null values' in refused.value.message
        assert f"The schema is {revisions()[-1]} now" in refused.value.message
        assert "run `prefloop migrate` again" in refused.value.advice
        with connect(url) as connection:
            assert rows.lost(connection, before) == []
        assert differences(database_url, url, Base.metadata) == []


def broken(folder: Path, statement: str) -> Path:
    """Return a folder with one revision that runs the statement."""
    (folder / "r9001_broken.py").write_text(
        f"from alembic import op\nrevision = 'r9001'\ndown_revision = {revisions()[-1]!r}\n\n"
        f"def upgrade():\n    op.execute({statement!r})\n"
    )
    return folder
