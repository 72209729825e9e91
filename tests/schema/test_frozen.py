"""Released revisions never make anything else, and the newest revision makes what the models describe."""

import re
import shutil
from pathlib import Path

import pytest

from app.models import Base
from app.schema import VERSIONS, revisions
from tests.schema import rows
from tests.schema.databases import new_database
from tests.schema.freeze import FROZEN, edits, freeze, rows_file, schema_file
from tests.schema.models import differences


def test_every_revision_is_frozen_and_has_an_id_in_order() -> None:
    missing = [each for each in revisions() if not (schema_file(each).exists() and rows_file(each).exists())]
    assert not missing, f"{missing} not frozen: run `make freeze` and commit what it writes"
    assert revisions() == sorted(revisions())
    assert all(re.fullmatch(r"r\d{4}", each) for each in revisions()), "a revision's id is r and four digits"
    assert {file.name.split(".")[0] for file in FROZEN.iterdir()} == set(revisions())


@pytest.mark.parametrize("revision", revisions())
def test_a_frozen_revision_makes_what_it_made(database_url: str, revision: str) -> None:
    changes = edits(database_url, revision)
    assert not changes, changes


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('server_default="0.6"', 'server_default="0.7"', "review_threshold double precision not null default '0.7'"),
        ("'^[a-z0-9]+(-[a-z0-9]+)*$'", "'^[a-z]+$'", "ck_project_slug_form"),
        ("NEW.opened_xid :=", "NEW.opened_xid := 1 +", "NEW.opened_xid := 1 + pg_current_xact_id"),
        ("CREATE TRIGGER kind_tallied AFTER", "CREATE TRIGGER kind_tallied_too AFTER", "kind_tallied_too"),
        ('"thumb", ["labeler_id", "id"]', '"thumb", ["id"]', "ix_thumb_labeler"),
    ],
)
def test_an_edited_revision_is_found(database_url: str, tmp_path: Path, before: str, after: str, told: str) -> None:
    copy = tmp_path / "versions"
    shutil.copytree(VERSIONS[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    [file] = copy.glob("r0001_*.py")
    whole = file.read_text()
    assert before in whole
    file.write_text(whole.replace(before, after, 1))
    changes = edits(database_url, "r0001", [copy])
    assert "The frozen revision r0001 was edited." in changes
    assert "add a revision instead" in changes
    assert told in changes


def test_a_freeze_writes_both_files_once(database_url: str, tmp_path: Path) -> None:
    assert freeze(database_url, tmp_path) == revisions()[-1]
    assert schema_file(revisions()[-1], tmp_path).read_text() == schema_file(revisions()[-1]).read_text()
    kept = rows.from_lines(rows_file(revisions()[-1], tmp_path).read_text())
    assert set(kept) == set(Base.metadata.tables)
    with pytest.raises(SystemExit, match="add a revision instead"):
        freeze(database_url, tmp_path)
    freeze(database_url, tmp_path, again=True)


def test_the_newest_revision_makes_what_the_models_say(database_url: str) -> None:
    with new_database(database_url, "head") as url:
        assert differences(database_url, url, Base.metadata) == []
