"""Forms that the labeling card sends."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.form_fields import CleanText, EmptyIsNone, Number

MAX_RATIONALE = 10_000
MAX_SKIP_REASON = 500

# Values of `preference` that are not steps of the scale.
BOTH_BAD = "both_bad"
CANNOT_JUDGE = "cannot_judge"
ASPECT = "aspect:"  # prefix of an aspect's field name

# Form fields that are not part of the answer.
_OF_THE_PAGE = {"csrf_token", "reason", "other"}


def _preference(value: object) -> object:
    if value in ("", None, BOTH_BAD, CANNOT_JUDGE):
        return value or None
    try:
        return int(str(value))
    except ValueError:
        raise ValueError("is not a step of the scale") from None


Desk = Annotated[UUID | None, EmptyIsNone]
Rank = Annotated[Annotated[int, Field(ge=1, le=9)] | None, EmptyIsNone]


class Draft(BaseModel):
    """An answer as seen on the screen.

    Attributes:
        preference: from -strengths (first response much better) to strengths (second much better); 0 is a tie.
            Otherwise both bad or cannot judge. None on a ranking that is judged.
        ranks: only for a ranking, one per response in the order shown: 1 is best, equal ranks tie, None is unranked.
        aspects: by name, -1 (first), 0 (same) or 1 (second).
    """

    model_config = ConfigDict(extra="forbid")

    preference: Annotated[int | Literal["both_bad", "cannot_judge"] | None, BeforeValidator(_preference)] = None
    ranks: list[Rank] = Field([], max_length=9)
    aspects: dict[str, int] = Field({}, max_length=100)
    flags: list[str] = Field([], max_length=100)
    rationale: Annotated[CleanText, Field(max_length=MAX_RATIONALE)] = ""


class LabelForm(Draft):
    """One submitted answer, with aspects in fields `aspect:NAME`, empty if not rated. Unknown fields are refused by
    name.

    Attributes:
        idempotency_key: made with the card; the same key twice is the same answer sent twice.
        rubric_id: the rubric that was shown.
        duration_ms: how long the card was visible, as measured by the browser; None without JavaScript.
        desk: the lease of the preloaded card that the page already shows; None if it has none to show.
        count: the page asks how many tasks are done and left. Counting takes as long as the rest of an answer, so
            between counts the page counts by itself.
    """

    idempotency_key: UUID
    rubric_id: int
    duration_ms: Number = None
    desk: Desk = None
    count: bool = False

    @model_validator(mode="before")
    @classmethod
    def aspects_by_name(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        said = {name: value for name, value in fields.items() if name not in _OF_THE_PAGE}
        rated = {name: said.pop(name) for name in list(said) if name.startswith(ASPECT)}
        if rated:
            said["aspects"] = {name.removeprefix(ASPECT): value for name, value in rated.items() if value != ""}
        return said


class SkipForm(BaseModel):
    """Why the labeler skips a task: one of the usual reasons, or `other` in their own words."""

    reason: Literal["", "too long", "not my field", "unclear", "other"] = ""
    other: Annotated[CleanText, Field(max_length=MAX_SKIP_REASON)] = ""
    desk: Desk = None  # as in `LabelForm`, like `count`
    count: bool = False

    def words(self) -> str:
        return (self.other or self.reason) if self.reason in ("", "other") else self.reason
