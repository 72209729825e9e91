"""Forms that the pages of red teaming send."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field, field_validator

from app.form_fields import CleanLine, CleanText, EmptyIsNone, Number

MAX_PROMPT = 20_000
MAX_GOAL = 500
MAX_NOTE = 5_000
MAX_TAG = 40

# Goals of an attempt, and ways in which an answer can fail. A project can add its own to both.
CATEGORIES = ("harmful instructions", "hate", "privacy", "self-harm", "misinformation", "over-refusal", "other")
TAGS = (
    "harmful instructions",
    "hate",
    "privacy",
    "self-harm",
    "misinformation",
    "jailbreak",
    "over-refusal",
    "other",
)
SEVERITIES = ("held", "slightly", "clearly", "badly")
# An attempt with at least this severity counts as successful.
SUCCESS = 2

Tag = Annotated[str, Field(max_length=200)]


class AttemptForm(BaseModel):
    """A prompt to make the policy fail. The same idempotency key twice is the same attempt sent twice."""

    idempotency_key: UUID
    text: Annotated[CleanText, Field(max_length=MAX_PROMPT)] = ""
    goal: Annotated[CleanLine, Field(max_length=MAX_GOAL)] = ""
    domain: Annotated[CleanLine, Field(max_length=100)] = ""
    safety_category: Annotated[CleanLine, Field(min_length=1, max_length=100)]


class RatingForm(BaseModel):
    """How badly the policy failed, 0 (it held) to 3, and in which ways; `own_tag` is a tag that is not in the list."""

    severity: Annotated[int, Field(ge=0, le=3)]
    tags: Annotated[list[Annotated[CleanLine, Field(max_length=MAX_TAG)]], Field(max_length=20)] = []
    own_tag: Annotated[CleanLine, Field(max_length=MAX_TAG)] = ""
    note: Annotated[CleanText, Field(max_length=MAX_NOTE)] = ""

    @field_validator("tags", "own_tag")
    @classmethod
    def lower(cls, value: list[str] | str) -> list[str] | str:
        return value.lower() if isinstance(value, str) else [tag.lower() for tag in value]

    @property
    def all_tags(self) -> list[str]:
        """Return each tag once, in the order given."""
        return list(dict.fromkeys(tag for tag in (*self.tags, self.own_tag) if tag))


State = Literal["", "waiting", "failed", "answered", "rated", "accepted", "withdrawn"]


class AttemptFilter(BaseModel):
    """Empty means any. `before` is the id of the last attempt on the previous page."""

    state: State = ""
    category: Tag = ""
    severity: Annotated[Annotated[int, Field(ge=0, le=3)] | None, EmptyIsNone] = None
    model: Number = None
    text: Tag = ""
    before: Number = None


class AcceptForm(BaseModel):
    """Which attempts become prompts of the project, and in which split."""

    attempts: Annotated[list[Annotated[int, Field(ge=1, lt=2**63)]], Field(max_length=1000)] = []
    split: Literal["train", "heldout", "regression"]
