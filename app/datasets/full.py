"""The full export: every kind of line, as the writer produces it and the reader checks it. See docs/import.md.

A line is one object. `record` says what it is, and lines refer to one another by `number`, which runs from 1 for each
kind. So a file reveals nothing about the database it came from, and the same project gives the same bytes.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.datasets.moments import Moment
from app.documents import LabelingSettings, RubricContent
from app.form_fields import CleanLine
from app.specs import Generation

Number = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=-4, le=4, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[CleanLine, Field(min_length=1, max_length=500)]
Tag = Annotated[str, Field(max_length=200)]
# Fields that a message may have. Models would train on others although no page shows them.
MessageField = Literal["role", "content"]


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    record: str


class ProjectLine(Line):
    """The first line. pseudonyms: labelers have numbers instead of names."""

    record: Literal["project"] = "project"
    full_export: Literal[1] = 1  # version of the format
    pseudonyms: bool
    name: Name
    description: Annotated[str, Field(max_length=100_000)]
    overlap: Annotated[int, Field(ge=1, le=100)]
    lease_minutes: Annotated[int, Field(ge=1, le=100_000)]
    review_threshold: Share
    labeling: LabelingSettings
    generation: Generation


class RubricLine(Line):
    """A published rubric version; number is the version's number."""

    record: Literal["rubric"] = "rubric"
    number: Number
    content: RubricContent
    quiz_of_version: Number | None
    published_at: datetime


class LabelerLine(Line):
    """Anybody who judged, wrote or reviewed."""

    record: Literal["labeler"] = "labeler"
    number: Number
    name: Name
    kind: Literal["person", "imported", "simulated", "ai_judge"]


class PromptLine(Line):
    record: Literal["prompt"] = "prompt"
    number: Number
    messages: list[dict[MessageField, str]]
    split: Literal["train", "heldout", "regression", "calibration"]
    domain: Tag
    difficulty: Literal["easy", "hard", "adversarial"]
    safety_category: Tag | None
    source: str
    created_at: datetime


class ResponseLine(Line):
    """source: the model's name, or where the response came from. ai_revised: an AI critic's revision."""

    record: Literal["response"] = "response"
    number: Number
    prompt: Number
    text: str
    source: str
    finish_reason: str | None
    n_tokens: Natural | None
    seed: int | None
    sampling: dict[str, Any]
    ai_revised: bool = False
    created_at: datetime


class RankingLine(Line):
    record: Literal["ranking"] = "ranking"
    number: Number
    prompt: Number
    size: Annotated[int, Field(ge=3, le=9)]
    created_at: datetime


class Verdict(BaseModel):
    """A reviewer's verdict, which replaces the judgments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reviewer: Number
    preference: Step
    note: str
    created_at: datetime


class ComparisonLine(Line):
    """A comparison with its current result. pair_id and digest: imports recognize it by these."""

    record: Literal["comparison"] = "comparison"
    number: Number
    prompt: Number
    response_a: Number
    response_b: Number
    rubric_version: Number
    purpose: Literal["train", "heldout", "calibration", "human_eval", "repeat"]
    state: Literal["open", "settled", "in_review", "adjudicated", "withdrawn"]
    overlap: Annotated[int, Field(ge=1, lt=2**31)]
    overlap_max: int | None
    grown: Annotated[int, Field(ge=0, le=1000)]
    repeat_of: Number | None
    relabel_of: Number | None
    ranking: Number | None
    offered: bool
    selection: dict[str, Any]
    priority: int
    gold: Step | None
    pair_id: str | None
    digest: str | None
    agreement: Share | None
    preference: Annotated[float, Field(ge=-4, le=4)] | None
    p_b: Share | None
    p_tie: Share | None
    reward_p_b: Share | None
    reward_trained: bool
    review_reason: Literal["split", "unjudgeable", "flagged", "reward_model", "requested"] | None
    flagged: bool
    conflict_dismissed: bool
    verdict: Verdict | None
    created_at: datetime
    settled_at: datetime | None


class JudgmentLine(Line):
    """One answer, in the order they were given; a preference below 0 is for A. Its rubric is the comparison's.

    preference None: could not judge. shown_first None: unknown. superseded: an answer that was changed, taken back or
    given under an earlier rubric.
    """

    record: Literal["judgment"] = "judgment"
    comparison: Number
    labeler: Number
    preference: Step | None
    both_bad: bool
    aspects: dict[str, Step]
    flags: list[str]
    rationale: str
    shown_first: Literal["a", "b"] | None
    duration_ms: Natural | None
    submitted_at: Moment
    superseded_at: datetime | None
    superseded_for: Literal["edited", "undone", "relabeled"] | None


class DemonstrationLine(Line):
    record: Literal["demonstration"] = "demonstration"
    prompt: Number
    text: str
    written: str | None
    author: Number | None
    source: str
    state: Literal["pending", "approved", "rejected"]
    ai_revised: bool = False
    rubric_version: Number | None
    response: Number | None
    duration_ms: Natural | None
    reviewer: Number | None
    review_note: str
    reviewed_at: datetime | None
    created_at: datetime


class ThumbLine(Line):
    record: Literal["thumb"] = "thumb"
    response: Number
    labeler: Number
    liked: bool
    rationale: str
    duration_ms: Natural | None
    created_at: datetime
    superseded_at: datetime | None


Numbered = RubricLine | LabelerLine | PromptLine | ResponseLine | RankingLine | ComparisonLine
AnyLine = ProjectLine | Numbered | JudgmentLine | DemonstrationLine | ThumbLine

# Order of the kinds in the file, so that a line refers only to lines above it.
KINDS = (
    "project",
    "rubric",
    "labeler",
    "prompt",
    "response",
    "ranking",
    "comparison",
    "judgment",
    "demonstration",
    "thumb",
)
LINES: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="record")])
