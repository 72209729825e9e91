"""Forms that the review pages send."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, Field

from app.form_fields import CleanText

QueueName = Literal["disagreement", "conflict", "flagged", "requested"]
Note = Annotated[CleanText, Field(max_length=10_000)]
# (?s): an imported domain may contain several lines.
Slice = Annotated[
    str, Field(pattern=r"(?s)^((domain|difficulty|safety_category|split|purpose)=.+)?$", max_length=10_000)
]


class Wanted(BaseModel):
    """The queue a reviewer works through and their place in it; part of the address of every page."""

    queue: QueueName = "disagreement"
    slice: Slice = ""
    version: Annotated[str, Field(pattern=r"^\d{0,9}$")] = ""  # of the rubric; empty: any
    key: float = 0.0  # of the place to continue after: see app.review.queues.Place
    after: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    def query(self, **place: object) -> str:
        """Return the queue and its filters as a query string, with a place if given."""
        kept = {name: value for name, value in self if value and name not in ("key", "after")}
        return urlencode(kept | place)


class DecisionForm(BaseModel):
    """`seen` is what the reviewer saw. If the comparison has changed since, the decision is refused."""

    seen: Annotated[str, Field(max_length=100)] = ""
    note: Note = ""


class VerdictForm(DecisionForm):
    """`verdict` is in canonical order: -4 (A far better) to 4 (B far better)."""

    verdict: Annotated[int, Field(ge=-4, le=4)]
    calibrate: bool = False  # also make a calibration item of it


class MoreLabelersForm(DecisionForm):
    """`who` is empty for anyone, `group-3` or `labeler-7`."""

    more: Annotated[int, Field(ge=1, le=20)] = 1
    who: Annotated[str, Field(pattern=r"^((group|labeler)-\d{1,18})?$")] = ""


class RelabelForm(BaseModel):
    """Which decided comparisons to ask again under a rubric version. An empty condition matches all.

    agreement: only comparisons with less agreement than this, in percent; those with a single judgment have none.
    sample: at most this many, drawn at random; empty: all. overlap: judgments wanted for each.
    """

    rubric: Annotated[int, Field(ge=1, le=2**63 - 1)]
    slice: Slice = ""
    flag: Annotated[str, Field(max_length=100)] = ""
    aspect: Annotated[str, Field(max_length=100)] = ""
    agreement: Annotated[str, Field(pattern=r"^\d{0,3}$")] = ""
    sample: Annotated[str, Field(pattern=r"^\d{0,6}$")] = ""
    overlap: Annotated[int, Field(ge=1, le=100)] | None = None
