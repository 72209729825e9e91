"""Times that PostgreSQL can store but Python cannot represent are read without an error."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests import factories


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize(
    ("stored", "year"),
    [
        ("0001-12-31 19:00:00+00 BC", 1),
        ("-infinity", 1),
        ("0001-01-01 00:00:00+00", 1),
        ("9999-12-31 23:59:59+00", 9999),
        ("10000-01-01 04:59:59+00", 9999),
        ("infinity", 9999),
    ],
)
def test_every_stored_time_is_read(session: Session, zone: str, stored: str, year: int) -> None:
    session.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
    found: datetime = session.execute(text("SELECT CAST(:stored AS timestamptz)"), {"stored": stored}).scalar_one()
    assert found.astimezone(UTC).year == year


def test_usual_times_are_read_to_the_microsecond(session: Session) -> None:
    now = datetime.now(UTC)
    assert session.execute(text("SELECT CAST(:now AS timestamptz)"), {"now": now}).scalar_one() == now


@pytest.mark.parametrize("at", ["infinity", "-infinity", "1969-12-31", "9000-01-02"])
def test_no_judgment_is_stored_of_a_time_that_cannot_be(session: Session, at: str) -> None:
    comparison, labeler = factories.comparison(session), factories.user(session)
    with pytest.raises(IntegrityError, match="created_at_range"), session.begin_nested():
        session.execute(
            text(
                "INSERT INTO judgment (comparison_id, labeler_id, rubric_id, preference, created_at)"
                " VALUES (:comparison, :labeler, :rubric, 1, CAST(:at AS timestamptz))"
            ),
            {
                "comparison": comparison.id,
                "labeler": labeler.id,
                "rubric": comparison.rubric_id,
                "at": at,
            },
        )
