"""When something was said, as import files have it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # as the table takes it
SLACK = timedelta(days=1)  # clocks differ, and who wrote a time without its zone meant their own


def _moment(at: datetime) -> datetime:
    """The time with its zone: UTC where none is said. Raises ValueError for what cannot be true."""
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    if at < EARLIEST:
        raise ValueError(f"{at.isoformat()} is before 1970")
    if at > datetime.now(UTC) + SLACK:
        raise ValueError(f"{at.isoformat()} is in the future")
    return at


Moment = Annotated[datetime, AfterValidator(_moment)]
