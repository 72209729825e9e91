"""Forms that the pages of demonstrations send."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.form_fields import CleanText, EmptyIsNone, ExactText, Number

MAX_TEXT = 100_000
MAX_NOTE = 5_000

# Reasons for skipping a prompt, by the stored value.
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
    """A written answer. `duration_ms` is how long the editor was visible; None without JavaScript."""

    prompt_id: int
    rubric_id: Number = None
    text: Text = ""
    duration_ms: Number = None


class SkipForm(BaseModel):
    reason: Literal["unclear", "knowledge", "unwilling", "other"] = "other"


class PreviewForm(BaseModel):
    """A text to render, and what to compare it with: the sample of the labeler's own task, or a stored demonstration.

    Samples are not identified by their ids, because ids would reveal which sample is older.
    """

    text: Text = ""
    task_id: Number = None
    demonstration_id: Number = None


class RevisionForm(BaseModel):
    """`seen` identifies the state of the demonstration that was on the screen."""

    seen: Annotated[str, Field(max_length=200)]
    text: Text = ""


class DecisionForm(RevisionForm):
    note: Note = ""


class DemonstrationFilter(BaseModel):
    """Empty means any. `before` is the id of the last demonstration on the previous page."""

    state: Literal["", "pending", "approved", "rejected", "withdrawn"] = ""
    author: Number = None
    split: Literal["", "train", "heldout", "regression", "calibration"] = ""
    domain: Tag = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    safety_category: Tag = ""
    text: Tag = ""
    before: Number = None


class AskForm(BaseModel):
    """Which prompts should get a demonstration: `count` of the matching ones. Empty means any. The same `key` asks only
    once."""

    split: Literal["", "train", "heldout"] = ""
    domain: Tag = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    safety_category: Tag = ""
    start: Start = "scratch"
    count: Annotated[int, Field(ge=1, le=100_000)] = 20
    key: Annotated[UUID | None, EmptyIsNone] = None
