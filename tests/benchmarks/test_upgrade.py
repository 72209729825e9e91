"""The upgrade's benchmark fills a database that the service could have made."""

from sqlalchemy import text

from app.db import make_engine
from app.schema import migrate
from benchmarks import upgrade
from benchmarks.peer.client import Played
from tests.schema.databases import connect, new_database

# Rows that a trigger or a foreign key would have refused, by what is wrong with them.
WRONG = {
    "judgments": "SELECT id FROM comparison AS c WHERE judgment_count <> "
    "(SELECT count(*) FROM judgment WHERE comparison_id = c.id AND superseded_at IS NULL)",
    "leases": "SELECT l.id FROM lease AS l LEFT JOIN judgment AS j ON j.lease_id = l.id "
    "AND (j.comparison_id, j.labeler_id) = (l.comparison_id, l.labeler_id) WHERE j.id IS NULL",
    "responses": "SELECT c.id FROM comparison AS c JOIN completion AS r ON r.id IN (completion_a_id, completion_b_id) "
    "WHERE r.prompt_id = c.prompt_id GROUP BY c.id HAVING count(*) <> 2",
    "labelers": "SELECT 1 FROM judgment LEFT JOIN user_account AS u ON u.id = labeler_id WHERE u.id IS NULL",
}


def test_the_rows_are_what_the_service_would_have_made_and_the_check_finds_what_is_missing(database_url: str) -> None:
    with new_database(database_url, "head") as url:
        engine = make_engine(url)
        upgrade.fill(engine, 200)
        with connect(url) as connection:
            for what, query in WRONG.items():
                assert connection.execute(text(query)).all() == [], what
            before = upgrade.count_rows(connection)
            # Of five comparisons, three have one judgment and one has two.
            assert (before["comparison"], before["judgment"], before["lease"]) == (200, 200, 200)
            migrate(url, versions=upgrade.TRIAL)
            assert upgrade.check(engine, before, Played())
            connection.execute(text("ALTER TABLE judgment DISABLE TRIGGER judgment_not_deleted"))
            connection.execute(text("DELETE FROM judgment WHERE id = 1"))
            assert not upgrade.check(engine, before, Played())
        engine.dispose()
