"""Record what the newest revision makes: `make freeze`. Afterwards the revision must not be changed any more.

There are two files per revision in tests/schema/frozen/. REVISION.schema.txt describes a new database by its catalogs.
REVISION.rows.txt has rows of every table, made by the code of that day. Tests compare with the first file, and upgrade
a database that contains the second.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from app.db import make_engine, make_session_factory
from app.models import Base
from app.postgres import database
from app.schema import VERSIONS, migrate, revisions
from app.settings import Settings
from tests.schema import rows
from tests.schema.catalogs import describe, difference
from tests.schema.databases import connect, new_database

FROZEN = Path(__file__).parent / "frozen"
HOW = "A database may have it already: add a revision instead, as docs/upgrading.md says."


def schema_file(revision: str, folder: Path = FROZEN) -> Path:
    return folder / f"{revision}.schema.txt"


def rows_file(revision: str, folder: Path = FROZEN) -> Path:
    return folder / f"{revision}.rows.txt"


def made_by(server_url: str, revision: str, versions: Sequence[Path] = VERSIONS) -> str:
    """Return the description of a new database at this revision."""
    with new_database(server_url) as url:  # never use a copy: a revision may have been edited
        migrate(url, versions=versions, to=revision)
        with connect(url) as connection:
            return describe(connection)


def edits(server_url: str, revision: str, versions: Sequence[Path] = VERSIONS) -> str:
    """Return the differences between what a frozen revision makes now and made when it was frozen; '' if none."""
    changes = difference(schema_file(revision).read_text(), made_by(server_url, revision, versions))
    return changes and f"The frozen revision {revision} was edited. {HOW}\n{changes}"


def freeze(server_url: str, folder: Path = FROZEN, *, again: bool = False) -> str:
    """Write the newest revision's two files; return its id.

    Args:
        again: overwrite the files of a revision that no release contains.

    Raises:
        SystemExit: the revision is already frozen, and `again` is not set.
    """
    revision = revisions()[-1]
    if schema_file(revision, folder).exists() and not again:
        raise SystemExit(
            f"{revision} is frozen already. {HOW} `make freeze FREEZE=--again` is for a revision that no release has."
        )
    with new_database(server_url, "head") as url, tempfile.TemporaryDirectory() as artifacts:
        with connect(url) as connection:
            described = describe(connection)
        engine = make_engine(url)
        with make_session_factory(engine)() as session:
            rows.make(session, Path(artifacts))
        engine.dispose()
        with connect(url) as connection:
            found = rows.read(connection, Base.metadata.tables)
    folder.mkdir(exist_ok=True)
    schema_file(revision, folder).write_text(described)
    rows_file(revision, folder).write_text(rows.to_lines(found))
    return revision


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--again", action="store_true", help="write over the files of a revision that no release has")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pf-") as home:
        settings = Settings(home=Path(home), database_url=None, _env_file=None)
        with database(settings) as url:
            revision = freeze(url, again=options.again)
    print(f"Frozen: {revision}. Commit {schema_file(revision).name} and {rows_file(revision).name} with it.")


if __name__ == "__main__":
    main()
