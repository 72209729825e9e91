"""Whether a database has what the models say, and the triggers and functions that no model can say."""

import functools
import warnings
from collections.abc import Collection

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData

from app.schema import is_ours
from tests.schema.catalogs import describe, difference, functions_of, triggers_of
from tests.schema.databases import connect, new_database

# Revisions define them. What they do now is in the newest tests/schema/frozen/*.schema.txt. A revision that adds,
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
    """Everything in which a database differs from the models and the lists above.

    Two comparisons, because they see different things: Alembic's says which operation is missing, and leaves out CHECK
    constraints; the other reads in the catalogs what the models would make, down to the text of each constraint.
    """
    wanted = _made_by(server_url, models)
    with connect(url) as connection, warnings.catch_warnings():
        # SQLAlchemy trips over a constraint that is NOT VALID; the catalogs show it.
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
    """The description of what the models make in a new database."""
    with new_database(server_url) as url, connect(url) as connection:
        models.create_all(connection)
        return describe(connection, triggers=False)


def _unlike(kind: str, wanted: Collection[str], found: Collection[str]) -> list[str]:
    missing, unlisted = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    said = [f"the {kind} {name} is missing" for name in missing]
    return said + [f"the {kind} {name} is not in tests/schema/models.py" for name in unlisted]
