"""What the labeling card sends."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field

MAX_RATIONALE = 10_000


def _clean(text: str) -> str:
    """Browsers send line ends as CRLF and count them as one character; PostgreSQL stores no NUL."""
    return text.replace("\r\n", "\n").replace("\0", "").strip()


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class LabelForm(BaseModel):
    """One answer, as seen on the screen.

    Attributes:
        idempotency_key: made with the card; the same key twice is the same answer sent twice.
        rubric_id: the rubric that was shown.
        preference: from -strengths (first response much better) to strengths (second much better); 0 a tie.
        duration_ms: time the card was in sight, as the browser measured it; none without JavaScript.
    """

    idempotency_key: UUID
    rubric_id: int
    preference: Annotated[int | None, BeforeValidator(_none_if_empty)] = None
    rationale: Annotated[str, BeforeValidator(_clean), Field(max_length=MAX_RATIONALE)] = ""
    duration_ms: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_none_if_empty)] = None
