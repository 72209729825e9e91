"""The form of a monitor's review."""

from typing import Literal

from pydantic import BaseModel, Field

from app.documents import Reason

MAX_NOTE = 2000
Verdict = Literal["wanted", "fault"]
VERDICTS: dict[Verdict, str] = {
    "wanted": "Wanted: people prefer such answers",
    "fault": "A fault: the policy gains reward by it, and people gain nothing",
}


class ReviewForm(BaseModel):
    """A person's verdict on what a monitor found in a round."""

    verdict: Verdict
    note: Reason = Field(max_length=MAX_NOTE)
    round: int = Field(ge=1, lt=2**31)
