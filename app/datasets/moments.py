"""Times in import files."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # the earliest time that the table's check allows
SLACK = timedelta(days=1)  # clocks differ, and a time without a zone was meant as local time


def _moment(at: datetime) -> datetime:
    """Return the time with its zone, UTC by default. Raise ValueError for a time that cannot be right."""
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    if at < EARLIEST:
        raise ValueError(f"{at.isoformat()} is before 1970")
    if at > datetime.now(UTC) + SLACK:
        raise ValueError(f"{at.isoformat()} is in the future")
    return at


Moment = Annotated[datetime, AfterValidator(_moment)]
