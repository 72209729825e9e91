"""What the review pages send."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, Field

from app.typed import CleanText

QueueName = Literal["disagreement", "conflict", "flagged", "requested"]
Note = Annotated[CleanText, Field(max_length=10_000)]
# (?s): what an import names a domain may be of several lines.
Slice = Annotated[
    str, Field(pattern=r"(?s)^((domain|difficulty|safety_category|split|purpose)=.+)?$", max_length=10_000)
]


class Wanted(BaseModel):
    """Which queue a reviewer works through, and where they stand in it; goes from page to page in the address."""

    queue: QueueName = "disagreement"
    slice: Slice = ""
    version: Annotated[str, Field(pattern=r"^\d{0,9}$")] = ""  # of the rubric; empty: any
    key: float = 0.0  # of the place after which to go on: see app.review.queues.Place
    after: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    def query(self, **place: object) -> str:
        """The queue and its filters as part of an address, with a place in it where one is given."""
        kept = {name: value for name, value in self if value and name not in ("key", "after")}
        return urlencode(kept | place)


class DecisionForm(BaseModel):
    """`seen` tells what the reviewer saw: nothing is decided on a comparison that has changed since."""

    seen: Annotated[str, Field(max_length=100)] = ""
    note: Note = ""


class VerdictForm(DecisionForm):
    """`verdict` is in canonical order: -4 (A far better) to 4 (B far better)."""

    verdict: Annotated[int, Field(ge=-4, le=4)]
    calibrate: bool = False  # and make a calibration item of it


class MoreLabelersForm(DecisionForm):
    """`who` is empty for anyone, `group-3` or `labeler-7`."""

    more: Annotated[int, Field(ge=1, le=20)] = 1
    who: Annotated[str, Field(pattern=r"^((group|labeler)-\d{1,18})?$")] = ""


class RelabelForm(BaseModel):
    """Which decided comparisons to ask again under a rubric version. Empty conditions hold for all.

    agreement: only those that agree less than this many percent; those with a single judgment have no agreement.
    sample: at most so many, drawn by chance; empty: all.
    overlap: judgments wanted of each.
    """

    rubric: Annotated[int, Field(ge=1, le=2**63 - 1)]
    slice: Slice = ""
    flag: Annotated[str, Field(max_length=100)] = ""
    aspect: Annotated[str, Field(max_length=100)] = ""
    agreement: Annotated[str, Field(pattern=r"^\d{0,3}$")] = ""
    sample: Annotated[str, Field(pattern=r"^\d{0,6}$")] = ""
    overlap: Annotated[int, Field(ge=1, le=100)] | None = None
