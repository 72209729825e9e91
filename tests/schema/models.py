"""Compare a database with the models, and with the triggers and functions that models cannot describe."""

import functools
import warnings
from collections.abc import Collection

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData

from app.schema import is_ours
from tests.schema.catalogs import describe, difference, functions_of, triggers_of
from tests.schema.databases import connect, new_database

# Revisions define them; the newest tests/schema/frozen/*.schema.txt has their text. A revision that adds,
# renames or drops one changes this list.
TRIGGERS = {
    "audit_event.audit_event_append_only",
    "comparison.comparison_opened",
    "comparison.withdrawal_tallied",
    "judgment.judgment_append_only",
    "judgment.judgment_not_deleted",
    "judgment.new_judgments_counted",
    "judgment.new_judgments_tallied",
    "judgment.superseded_judgments_counted",
    "judgment.superseded_judgments_tallied",
    "lease.lease_counted",
    "lease.lease_takes_newest_rubric",
    "rubric.rubric_published_is_final",
    "suite_version.suite_version_is_final",
    "user_account.kind_tallied",
}
FUNCTIONS = {
    "answer_code",
    "count_lease",
    "count_new_judgments",
    "count_superseded_judgments",
    "fold_tally",
    "mark_opened",
    "refuse_change",
    "take_newest_rubric",
    "tally_judgments",
    "tally_kind",
    "tally_withdrawal",
}


def differences(server_url: str, url: str, models: MetaData) -> list[str]:
    """Return all differences between a database and the models and lists above.

    There are two comparisons, because they find different things. Alembic's says which operation is missing, but leaves
    out CHECK constraints. The other compares catalogs with what the models would make, including constraints' texts.
    """
    wanted = _made_by(server_url, models)
    with connect(url) as connection, warnings.catch_warnings():
        # SQLAlchemy fails on a constraint that is NOT VALID; the catalogs show it.
        warnings.filterwarnings("ignore", message="Can't validate argument 'dialect_options'")
        options = {"include_name": is_ours, "compare_server_default": True}
        said = [repr(each) for each in compare_metadata(MigrationContext.configure(connection, opts=options), models)]
        if lines := difference(wanted, describe(connection, triggers=False)):
            said.append(f"models (expected) and migrations (found):\n{lines}")
        whole = describe(connection)
    said += _unlike("trigger", TRIGGERS, triggers_of(whole))
    said += _unlike("function", FUNCTIONS, functions_of(whole))
    return said


@functools.cache
def _made_by(server_url: str, models: MetaData) -> str:
    """Return the description of a new database made from the models."""
    with new_database(server_url) as url, connect(url) as connection:
        models.create_all(connection)
        return describe(connection, triggers=False)


def _unlike(kind: str, wanted: Collection[str], found: Collection[str]) -> list[str]:
    missing, unlisted = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    said = [f"the {kind} {name} is missing" for name in missing]
    return said + [f"the {kind} {name} is not in tests/schema/models.py" for name in unlisted]
