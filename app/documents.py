"""Content of rubrics and labeling settings of projects, as documents that tables store as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

# A key in stored judgments, exports and metrics, so it is plain; people read the question or label instead.
Name = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[a-z0-9][a-z0-9_ -]{0,39}$")]
# At least one visible character: text of only spaces, control or zero-width characters would look empty.
VISIBLE = r"[^\s\p{Cc}\p{Cf}]"
Line = Annotated[str, StringConstraints(strip_whitespace=True, pattern=VISIBLE, max_length=300)]
# Kept exactly: code may begin with spaces.
Text = Annotated[str, StringConstraints(pattern=VISIBLE, max_length=20_000)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, pattern=VISIBLE, max_length=2_000)]
Share = Annotated[float, Field(ge=0, le=1)]

ConsensusMethod = Literal["majority", "strength_weighted", "dawid_skene", "crowd_bt"]
PairPolicy = Literal["random", "near_miss", "uncertain", "new_against_old"]
# All other slices take any value that a project uses.
CLOSED_SLICES = {
    "difficulty": ("easy", "hard", "adversarial"),
    "purpose": ("train", "heldout", "human_eval", "calibration"),
}

MAX_GUIDELINE = 50_000
MAX_ASPECTS = 12
MAX_FLAGS = 12
MAX_EXAMPLES = 30
MAX_EXAMPLES_LENGTH = 100_000
MAX_QUIZ_ITEMS = 50
MAX_PRINCIPLES = 30
MAX_PRINCIPLE = 1_000


class Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- a rubric version ------------------------------------------------------------------------------------------------


class Aspect(Document):
    """Something judged separately from the overall preference, on its own scale: which response has more of it."""

    name: Name
    question: Line = Field(description="what the labeler reads: “Which is more accurate?”")


class Flag(Document):
    """A mark that a labeler can set on a comparison, whatever they prefer: harmful, personal data, broken prompt..."""

    name: Name
    label: Line


class Example(Document):
    """A worked example in the rubric: two responses, which one is right, and why."""

    prompt: Text
    better: Text
    worse: Text
    reason: Reason


class QuizItem(Document):
    """A question of the training quiz. `answer` is the right side: -1 first, 0 tie, 1 second."""

    prompt: Text
    first: Text
    second: Text
    answer: Literal[-1, 0, 1]
    feedback: Reason = Field(description="shown after the answer, right or wrong")


class Principle(Document):
    """A principle of the constitution: an AI critic criticises and revises answers under it."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, pattern=VISIBLE, max_length=MAX_PRINCIPLE)]


DEFAULT_ASPECTS = (
    Aspect(name="factuality", question="Which is more accurate?"),
    Aspect(name="style", question="Which is better written?"),
)
DEFAULT_FLAGS = (
    Flag(name="harmful", label="Harmful or unsafe"),
    Flag(name="personal data", label="Contains personal data"),
    Flag(name="broken", label="The prompt makes no sense"),
)


class RubricContent(Document):
    """The full content of a rubric version, in columns of the same names.

    The limits keep it small enough for a labeler to remember, and for every labeling card to carry.
    """

    guideline: Annotated[str, StringConstraints(pattern=VISIBLE, max_length=MAX_GUIDELINE)]
    strengths: int = Field(3, ge=1, le=4)
    allow_tie: bool = True
    allow_both_bad: bool = True
    allow_cannot_judge: bool = True
    rationale_rule: Literal["optional", "required"] = "optional"
    aspects: tuple[Aspect, ...] = Field(DEFAULT_ASPECTS, max_length=MAX_ASPECTS)
    flags: tuple[Flag, ...] = Field(DEFAULT_FLAGS, max_length=MAX_FLAGS)
    examples: tuple[Example, ...] = Field((), max_length=MAX_EXAMPLES)
    quiz: tuple[QuizItem, ...] = Field((), max_length=MAX_QUIZ_ITEMS)
    principles: tuple[Principle, ...] = Field((), max_length=MAX_PRINCIPLES)

    @field_validator("guideline")
    @classmethod
    def ends_with_one_newline(cls, guideline: str) -> str:
        return guideline.strip() + "\n"

    @field_validator("aspects", "flags")
    @classmethod
    def named_apart(cls, rows: tuple[Aspect, ...] | tuple[Flag, ...]) -> tuple[Aspect, ...] | tuple[Flag, ...]:
        """Refuse names that look the same, such as “personal data”, “personal-data” and “personal_data”."""
        seen: dict[str, str] = {}
        for row in rows:
            folded = row.name.replace("_", " ").replace("-", " ")
            if folded in seen:
                raise ValueError(f"two have the same name: “{seen[folded]}” and “{row.name}”")
            seen[folded] = row.name
        return rows

    @field_validator("examples")
    @classmethod
    def not_a_book(cls, examples: tuple[Example, ...]) -> tuple[Example, ...]:
        length = sum(len(text) for example in examples for text in example.model_dump().values())
        if length > MAX_EXAMPLES_LENGTH:
            raise ValueError(f"together they have {length:,} characters; at most {MAX_EXAMPLES_LENGTH:,}")
        return examples

    @model_validator(mode="after")
    def quiz_is_on_the_scale(self) -> "RubricContent":
        ties = [number for number, item in enumerate(self.quiz, 1) if item.answer == 0]
        if ties and not self.allow_tie:
            raise ValueError(f"the right answer to quiz question {ties[0]} is a tie, but the scale has none")
        return self


# ---- a project -------------------------------------------------------------------------------------------------------


class OverlapRule(Document):
    """The overlap for comparisons of a slice (`domain=law`, `difficulty=hard`) or a purpose (`purpose=heldout`)."""

    where: Annotated[str, StringConstraints(pattern=r"^(domain|difficulty|safety_category|purpose)=.{1,100}$")]
    overlap: int = Field(ge=1, le=100)

    @model_validator(mode="after")
    def fits_something(self) -> "OverlapRule":
        name, _, value = self.where.partition("=")
        if value not in CLOSED_SLICES.get(name, (value,)):
            raise ValueError(f"there is no {name} “{value}”, but {', '.join(CLOSED_SLICES[name])}")
        return self


class AdaptiveOverlap(Document):
    """Stop asking when the posterior is sure; ask more labelers while it is split, up to a maximum."""

    at_least: int = Field(1, ge=1, le=100)
    at_most: int = Field(5, ge=1, le=100)
    sure: float = Field(0.9, gt=0.5, lt=1, description="stop when the likelier side has this probability")

    @model_validator(mode="after")
    def in_order(self) -> "AdaptiveOverlap":
        if self.at_least > self.at_most:
            raise ValueError("the least overlap is above the cap")
        return self


class Calibration(Document):
    """Items with known answers, mixed in so that they look like any other task."""

    rate: Share = Field(0.0, description="share of a labeler's tasks that are calibration items, where there are any")
    threshold: Share = Field(0.7, description="below this accuracy a labeler is paused")
    window: int = Field(20, ge=5, le=1000, description="answers to calibration items that are looked back on")
    least: int = Field(5, ge=1, le=1000, description="answers before anyone is paused")


class Repeats(Document):
    """Hidden repeats of a labeler's own comparisons with sides swapped, to measure self-consistency."""

    rate: Share = 0.0
    gap: int = Field(20, ge=1, le=10_000, description="other judgments in between, at least")


class PairShares(Document):
    """How pairs are chosen from a round's samples; shares are relative."""

    random: float = Field(1.0, ge=0)
    near_miss: float = Field(0.0, ge=0, description="closest in reward")
    uncertain: float = Field(0.0, ge=0, description="where the heads of the reward model disagree most")
    new_against_old: float = Field(1.0, ge=0, description="the new policy's response against the one before")

    @model_validator(mode="after")
    def something(self) -> "PairShares":
        if not any((self.random, self.near_miss, self.uncertain, self.new_against_old)):
            raise ValueError("at least one share must be above 0")
        return self


class DifficultyShares(Document):
    """How prompts are mixed by difficulty if there are more than a round samples; shares are relative."""

    easy: float = Field(1.0, ge=0)
    hard: float = Field(1.0, ge=0)
    adversarial: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def something(self) -> "DifficultyShares":
        if not any((self.easy, self.hard, self.adversarial)):
            raise ValueError("at least one share must be above 0")
        return self


class OwnFigures(Document):
    """What labelers see about themselves."""

    agreement: bool = True
    calibration: bool = False
    seconds: bool = True


class LabelingSettings(Document):
    """`project.labeling`. Everything has a default, so an empty document is a valid project."""

    overlap: tuple[OverlapRule, ...] = Field((), description="the first rule that fits; else the project's overlap")
    judged_once: Share = Field(
        0.0, description="share of comparisons on train prompts that one person judges, whatever the project's overlap"
    )
    adaptive: AdaptiveOverlap | None = None
    calibration: Calibration = Calibration()
    repeats: Repeats = Repeats()
    quiz_pass: Share = Field(0.8, description="share of right answers that passes a rubric's quiz, if it has one")
    pairs: PairShares = PairShares()
    difficulties: DifficultyShares = DifficultyShares()
    ranking_size: int = Field(2, ge=2, le=9, description="responses shown at once in new tasks: 2 compares, more rank")
    consensus: ConsensusMethod = "majority"
    thumbs: bool = Field(False, description="labelers are also asked about single responses: good or bad")
    own_figures: OwnFigures = OwnFigures()
