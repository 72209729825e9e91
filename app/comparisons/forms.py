"""What the table of comparisons sends: its filter, and what to do with the rows that are chosen."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, Field

from app.review.forms import Note, Slice

MOST_CHOSEN = 100  # a page of the table has fewer
Digits = Annotated[str, Field(pattern=r"^\d{0,9}$")]


class Wanted(BaseModel):
    """A filter. Empty fields match everything.

    Attributes:
        text: in the prompt, in any case; or the number of a comparison.
        slice: `domain=law`, `purpose=train` and the like.
        round: the number of the round whose samples are compared.
        below: only those that agree less than this many percent. A single judgment has no agreement.
        least, most: how many labelers have judged it.
        before: the id before which the page begins; 0: it is the first.
    """

    text: Annotated[str, Field(max_length=200)] = ""
    state: Literal["", "open", "settled", "in_review", "adjudicated", "withdrawn"] = ""
    slice: Slice = ""
    round: Digits = ""
    below: Annotated[str, Field(pattern=r"^\d{0,3}$")] = ""
    least: Annotated[str, Field(pattern=r"^\d{0,3}$")] = ""
    most: Annotated[str, Field(pattern=r"^\d{0,3}$")] = ""
    before: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def is_narrow(self) -> bool:
        return any(value for name, value in self if name != "before")

    def query(self, **other: object) -> str:
        """The filter as the end of an address, with other fields where they are given."""
        return urlencode({name: value for name, value in (dict(self) | other).items() if value})


Action = Literal["withdraw", "request", "more"]


class BulkForm(BaseModel):
    """What to do with the chosen comparisons: withdraw them, put them up for review, or ask more labelers."""

    ids: Annotated[list[Annotated[int, Field(ge=1, lt=2**63)]], Field(max_length=MOST_CHOSEN)] = []
    do: Action
    note: Note = ""
    more: Annotated[int, Field(ge=1, le=20)] = 1
