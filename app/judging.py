"""What a rubric asks of its labelers and what a project wants of its judgments: documents that tables hold as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[a-z0-9][a-z0-9_ -]{0,39}$")]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Share = Annotated[float, Field(ge=0, le=1)]

ConsensusMethod = Literal["majority", "strength_weighted", "dawid_skene", "crowd_bt"]
PairPolicy = Literal["random", "near_miss", "uncertain", "new_against_old"]


class Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- of a rubric version ---------------------------------------------------------------------------------------------


class Aspect(Document):
    """Something judged apart from the overall preference, on a scale of its own: which response has more of it."""

    name: Name
    question: Line = Field(description="what the labeler reads: “Which is more accurate?”")


class Flag(Document):
    """A mark a labeler can set on a comparison whatever they prefer: harmful, personal data, broken prompt..."""

    name: Name
    label: Line


class Example(Document):
    """A worked example in the rubric: two responses, which one is right, and why."""

    prompt: str = Field(min_length=1, max_length=20_000)
    better: str = Field(min_length=1, max_length=20_000)
    worse: str = Field(min_length=1, max_length=20_000)
    reason: str = Field(min_length=1, max_length=2_000)


class QuizItem(Document):
    """A question of the training quiz. `answer` is the side that is right: -1 first, 0 tie, 1 second."""

    prompt: str = Field(min_length=1, max_length=20_000)
    first: str = Field(min_length=1, max_length=20_000)
    second: str = Field(min_length=1, max_length=20_000)
    answer: Literal[-1, 0, 1]
    feedback: str = Field(min_length=1, max_length=2_000, description="shown after the answer, right or wrong")


DEFAULT_ASPECTS = (
    Aspect(name="factuality", question="Which is more accurate?"),
    Aspect(name="style", question="Which is better written?"),
)
DEFAULT_FLAGS = (
    Flag(name="harmful", label="Harmful or unsafe"),
    Flag(name="personal data", label="Contains personal data"),
    Flag(name="broken", label="The prompt makes no sense"),
)


# ---- of a project ----------------------------------------------------------------------------------------------------


class OverlapRule(Document):
    """Another overlap for comparisons of a slice (`domain=law`, `difficulty=hard`) or a purpose (`purpose=heldout`)."""

    where: Annotated[str, StringConstraints(pattern=r"^(domain|difficulty|safety_category|purpose)=.{1,100}$")]
    overlap: int = Field(ge=1, le=100)


class AdaptiveOverlap(Document):
    """Stop asking once the posterior is sure, ask on while it is split, up to a cap."""

    at_least: int = Field(1, ge=1, le=100)
    at_most: int = Field(5, ge=1, le=100)
    sure: float = Field(0.9, gt=0.5, lt=1, description="stop when the likelier side has this probability")

    @model_validator(mode="after")
    def in_order(self) -> "AdaptiveOverlap":
        if self.at_least > self.at_most:
            raise ValueError("the least overlap is above the cap")
        return self


class Calibration(Document):
    """Items with known answers, mixed in unseen."""

    rate: Share = Field(0.0, description="share of a labeler's tasks that are calibration items, where there are any")
    threshold: Share = Field(0.7, description="below this accuracy a labeler is paused")
    window: int = Field(20, ge=5, le=1000, description="answers to calibration items that are looked back on")
    least: int = Field(5, ge=1, le=1000, description="answers before anyone is paused")


class Repeats(Document):
    """Hidden repeats of a labeler's own comparisons, sides swapped: self-consistency."""

    rate: Share = 0.0
    gap: int = Field(20, ge=1, le=10_000, description="other judgments in between, at least")


class PairShares(Document):
    """How the pairs of a round's samples are chosen; shares are relative."""

    random: float = Field(1.0, ge=0)
    near_miss: float = Field(0.0, ge=0, description="closest in reward")
    uncertain: float = Field(0.0, ge=0, description="where the heads of the reward model disagree most")
    new_against_old: float = Field(0.5, ge=0, description="the new policy's response against the one before")

    @model_validator(mode="after")
    def something(self) -> "PairShares":
        if not any((self.random, self.near_miss, self.uncertain, self.new_against_old)):
            raise ValueError("at least one share must be above 0")
        return self


class DifficultyShares(Document):
    """How prompts are mixed by difficulty when there are more than a round samples; shares are relative."""

    easy: float = Field(1.0, ge=0)
    hard: float = Field(1.0, ge=0)
    adversarial: float = Field(1.0, ge=0)


class OwnFigures(Document):
    """What labelers see of their own figures."""

    agreement: bool = True
    calibration: bool = False
    seconds: bool = True


class LabelingSettings(Document):
    """`project.labeling`. Everything has a default, so that an empty document is the plainest project."""

    overlap: tuple[OverlapRule, ...] = Field((), description="the first rule that fits; else the project's overlap")
    adaptive: AdaptiveOverlap | None = None
    calibration: Calibration = Calibration()
    repeats: Repeats = Repeats()
    quiz_pass: Share = Field(0.8, description="share of right answers that passes a rubric's quiz, if it has one")
    pairs: PairShares = PairShares()
    difficulties: DifficultyShares = DifficultyShares()
    ranking_size: int = Field(2, ge=2, le=9, description="responses shown at once in new tasks: 2 compares, more rank")
    consensus: ConsensusMethod = "majority"
    own_figures: OwnFigures = OwnFigures()
