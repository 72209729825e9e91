"""Rows of the files that specs refer to, one JSON object per line: prompts, comparisons, demonstrations, thumbs."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs import Spec, Weight


def lines_of(text: str) -> list[str]:
    """The lines of a file of JSON lines that are not empty, at "\\n" alone.

    `str.splitlines` would also end a line at characters that JSON allows within a text, such as U+2028 and U+0085.
    """
    return [line for line in text.split("\n") if line.strip()]


class PromptRow(Spec):
    """A line of a prompts file."""

    id: int
    messages: tuple[dict[str, str], ...]
    slices: dict[str, str] = Field(default_factory=dict, description="domain, difficulty, safety_category, split")


class AnswersRow(Spec):
    """A line of a file of responses to a prompt, as people would read them."""

    prompt_id: int
    texts: tuple[str, ...]


class PairRow(Spec):
    """A line of a snapshot: one comparison as the trainer reads it.

    `preference` is the consensus strength in [-4, 4] towards B; `p_b` the consensus probability that B is better;
    `weight` how much the row counts in the loss.
    """

    comparison_id: int
    prompt_id: int
    messages: tuple[dict[str, str], ...]
    response_a: str
    response_b: str
    finished_a: bool = Field(True, description="False where the response was cut by length")
    finished_b: bool = True
    preference: float = Field(ge=-4, le=4)
    p_b: float = Field(ge=0, le=1)
    p_tie: float = Field(0.0, ge=0, le=1, description="probability of a tie; p_b counts half of it")
    agreement: float | None = Field(None, ge=0, le=1, description="share of the labelers who chose the winner")
    opposed: float | None = Field(None, ge=0, le=1, description="share of the labelers who chose the loser")
    both_bad: float = Field(0.0, ge=0, le=1, description="share of the labelers who found neither any good")
    aspects: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="p_b by aspect, where rated apart"
    )
    ranking: int | None = Field(None, description="pairs of one k-way ranking share it: one batch element")
    weight: Weight = 1.0
    judgments: tuple[int, ...] = Field(default=(), description="ids of the judgments behind it")
    rubric_version: int | None = None
    source: Literal["people", "ai"] = Field(
        "people", description="who judged it; ai: admitted AI judges, and nobody else"
    )
    judges: tuple[int, ...] = Field((), description="ids of the judges' judgments behind it, where source is ai")
    ai_revised: tuple[Literal["a", "b"], ...] = Field(
        (), description="responses that are an AI critic's revision of a policy's answer"
    )
    split: Literal["train", "heldout"]
    slices: dict[str, str] = Field(default_factory=dict)


REWARD_VIEWS = "comparisons.jsonl"  # in a reward model's folder: a RewardView for each comparison that it has read


class RewardView(Spec):
    """A reward model's prediction for a comparison in its snapshot: the probability that B is better, if it is not a
    tie.

    `trained` is False if the model that predicts did not train on the comparison: it was held out, left out, or in that
    member's fold. Only then agreement is not just memory.
    """

    comparison_id: int
    p_b: float = Field(ge=0, le=1)
    trained: bool


class DemonstrationRow(Spec):
    """A line of a demonstrations file: a conversation and the answer to learn."""

    id: int
    messages: tuple[dict[str, str], ...]
    response: str
    ai_revised: bool = Field(False, description="an AI critic's revision of a policy's answer, which a person approved")
    weight: Weight = 1.0
    split: Literal["train", "heldout"] = "train"
    slices: dict[str, str] = Field(default_factory=dict)


class ThumbRow(Spec):
    """A line of a thumbs file: one response, liked or not."""

    id: int
    messages: tuple[dict[str, str], ...]
    response: str
    ai_revised: bool = Field(False, description="an AI critic's revision of a policy's answer")
    liked: bool
    weight: Weight = 1.0
    slices: dict[str, str] = Field(default_factory=dict)


class SuiteAnswer(Spec):
    """A line with both policies' results on a suite's case, by the case's id in the suite's file.

    `answer` and `answer_before` are the sampled answers. They are empty for a case that asks which of two answers is
    likelier. There, `margin` and `margin_before` are the good answer's log-prob per token minus the bad one's.
    """

    id: str
    slice: str = ""
    passed: bool
    passed_before: bool
    answer: str = ""
    answer_before: str = ""
    finished: bool = Field(True, description="False where the answer was cut by length")
    finished_before: bool = True
    margin: float | None = None
    margin_before: float | None = None
