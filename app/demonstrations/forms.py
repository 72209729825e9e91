"""What the pages of demonstrations send."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.typed import CleanText, EmptyIsNone, ExactText, Number

MAX_TEXT = 100_000
MAX_NOTE = 5_000

# What a labeler says who skips a prompt, by what is stored.
SKIP_REASONS = {
    "unclear": "The prompt makes no sense",
    "knowledge": "I do not know enough about it",
    "unwilling": "I do not want to write this",
    "other": "Another reason",
}
Start = Literal["scratch", "sample"]


Text = Annotated[ExactText, Field(max_length=MAX_TEXT)]
Note = Annotated[CleanText, Field(max_length=MAX_NOTE)]
Tag = Annotated[str, Field(max_length=200)]


class AnswerForm(BaseModel):
    """A written answer. `duration_ms` is the time the editor was in sight; none without JavaScript."""

    prompt_id: int
    rubric_id: Number = None
    text: Text = ""
    duration_ms: Number = None


class SkipForm(BaseModel):
    reason: Literal["unclear", "knowledge", "unwilling", "other"] = "other"


class PreviewForm(BaseModel):
    """A text to be rendered, and what its changes are shown against: the sample that one's own task begins with, or a
    demonstration as it stands. Samples are never named by their own numbers: those would tell which is older."""

    text: Text = ""
    task_id: Number = None
    demonstration_id: Number = None


class RevisionForm(BaseModel):
    """`seen` tells which state of the demonstration was on the screen."""

    seen: Annotated[str, Field(max_length=200)]
    text: Text = ""


class DecisionForm(RevisionForm):
    note: Note = ""


class DemonstrationFilter(BaseModel):
    """Empty means any. `before` is the id of the last demonstration of the page before."""

    state: Literal["", "pending", "approved", "rejected", "withdrawn"] = ""
    author: Number = None
    split: Literal["", "train", "heldout", "regression", "calibration"] = ""
    domain: Tag = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    safety_category: Tag = ""
    text: Tag = ""
    before: Number = None


class AskForm(BaseModel):
    """Which prompts want a demonstration: `count` of those that fit. Empty means any. The same `key` asks once."""

    split: Literal["", "train", "heldout"] = ""
    domain: Tag = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    safety_category: Tag = ""
    start: Start = "scratch"
    count: Annotated[int, Field(ge=1, le=100_000)] = 20
    key: Annotated[UUID | None, EmptyIsNone] = None
