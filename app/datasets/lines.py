"""The lines of this project's own formats: prompts, demonstrations, judgments and pairs."""

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from app.datasets.fields import (
    Answer,
    Choice,
    Conversation,
    Filled,
    PairId,
    Person,
    Preference,
    Rating,
    Tags,
    Text,
    answer,
    conversation,
    is_missing,
    messages_of,
    of_different_people,
    who,
)
from app.datasets.records import (
    DemonstrationRecord,
    JudgmentRecord,
    Labeler,
    PairRecord,
    PromptRecord,
    Rated,
    RatedRecord,
    Record,
    ThumbRecord,
)
from app.datasets.transcripts import Turns, join_runs, prompt_turns, turns_of
from app.prompts.service import Messages

UNPAIRED = (
    "has one response with a label (a thumb up or down): this is unpaired feedback, not an answer to imitate. Import "
    "it "
    "with the format unpaired"
)


def is_thumb(label: object) -> bool:
    return isinstance(label, bool) or label in (0, 1) or str(label).strip().lower() in ("0", "1", "true", "false")


class PromptLine(Tags):
    prompt: Conversation = Field(alias="messages")

    def records(self, source: str, told: list[str]) -> list[Record]:
        return [self._prompt(self.prompt)]


class Answered(Tags):
    """A prompt and one answer, or a conversation whose last turn is the answer."""

    messages: Any = None
    prompt: Any = None
    response: Any = None
    completion: Any = None
    label: Any = None

    @field_validator("response", "completion")
    @classmethod
    def _answer(cls, value: object) -> str | None:
        return None if value is None else answer(value)

    def _parts(self, told: list[str]) -> tuple[PromptRecord, str]:
        """Return the prompt and the answer."""
        given = [text for text in (self.response, self.completion) if text is not None]
        before = self.prompt if self.prompt is not None else self.messages
        if self.prompt is not None and self.messages is not None:
            told.append("The line has a prompt and messages; the messages were left out")
        if given and isinstance(before, list) and len(given) == 1:
            messages: Messages = conversation(before)
        elif not given and isinstance(before, list) and before:
            messages, last = _last_answer(turns_of(before))
            given = [last]
        elif len(given) == 1 and before is not None:
            messages = messages_of(join_runs(prompt_turns(before)))
        else:
            raise ValueError(
                "must hold a prompt and one of response or completion, or messages that end with the answer"
            )
        return self._prompt(messages), given[0]


class UnpairedLine(Answered):
    """TRL's unpaired preferences: a prompt, one response, and whether somebody liked it."""

    labeler: Person | None = None
    judge: Person | None = None
    model: Text = ""
    rationale: Text = ""

    @field_validator("label")
    @classmethod
    def _liked(cls, value: object) -> bool:
        if is_missing(value) or not is_thumb(value):
            raise ValueError("must be true (liked) or false")
        return value in (True, 1) or str(value).strip().lower() in ("1", "true")

    def records(self, source: str, told: list[str]) -> list[Record]:
        if self.label is None:
            raise ValueError("has no label (true for a liked response, false for one that was not)")
        prompt, text = self._parts(told)
        by = who(self.labeler, self.judge, source)
        return [ThumbRecord(prompt, text, self.label, by, self.model or source, self.rationale)]


class DemonstrationLine(Answered):
    """An answer for the model to imitate."""

    author: Person | None = None

    @field_validator("label")
    @classmethod
    def _no_thumb(cls, value: object) -> object:
        if not is_missing(value) and is_thumb(value):
            raise ValueError(UNPAIRED)
        return value

    def records(self, source: str, told: list[str]) -> list[Record]:
        prompt, text = self._parts(told)
        if self.label is not None:
            told.append("The line has a label that is neither true nor false; the label was left out")
        return [DemonstrationRecord(prompt, text, self.author or source)]


def _last_answer(turns: Turns) -> tuple[Messages, str]:
    if turns[-1][0] != "assistant":
        raise ValueError("has no response, and its messages do not end with the assistant's turn")
    return messages_of(turns[:-1]), answer(turns[-1][1])


class InstructionLine(Tags):
    """Alpaca: an instruction, perhaps with an input, and the output to imitate."""

    instruction: Filled
    input: Text = ""
    output: Filled

    def records(self, source: str, told: list[str]) -> list[Record]:
        prompt = self._prompt(instruction(self.instruction, self.input))
        return [DemonstrationRecord(prompt, self.output, source)]


def instruction(text: str, given: str = "") -> list[dict[str, str]]:
    return messages_of((("user", f"{text}\n\n{given}" if given.strip() else text),))


class JudgmentLine(Answer):
    pair_id: PairId

    def records(self, source: str, told: list[str]) -> list[Record]:
        if not (self.labeler or self.judge):
            raise ValueError("names neither a labeler nor a judge")
        judgment = self._judgment(source, self.pair_id)
        if judgment is None:
            raise ValueError("has neither a choice nor a preference")
        return [judgment]


class PairBase(Tags, Answer):
    """Two responses, and the judgments in the same line."""

    # May be empty: models sometimes answer nothing, and people judge that.
    response_a: Text
    response_b: Text
    pair_id: PairId | None = None
    model_a: Text = ""
    model_b: Text = ""
    choices: Annotated[dict[Person, Choice | None] | None, BeforeValidator(of_different_people)] = None  # by labeler
    # For measuring labelers. Not called `gold`, because data sets use that name for labels of all their pairs.
    known_answer: Preference | None = None

    @abstractmethod
    def _messages(self) -> Messages:
        """Return the conversation that both responses answer."""

    def _models(self) -> tuple[str, str]:
        return self.model_a, self.model_b

    def records(self, source: str, told: list[str]) -> list[Record]:
        own = self._judgment(source)
        if own is None:
            for name in ("rationale", "labeler", "judge", "submitted_at", "duration_ms"):
                if getattr(self, name):
                    told.append(f"The line has a {name} but no choice or preference; the {name} was left out")
        judgments = [
            JudgmentRecord(Labeler(labeler), side) for labeler, side in (self.choices or {}).items() if side is not None
        ]
        model_a, model_b = self._models()
        return [
            PairRecord(
                self._prompt(self._messages()),
                self.response_a,
                self.response_b,
                pair_id=self.pair_id,
                source_a=model_a or source,
                source_b=model_b or source,
                judgments=tuple([own, *judgments] if own else judgments),
                gold=self.known_answer,
            )
        ]


class PairLine(PairBase):
    prompt: Conversation = Field(alias="messages")

    def _messages(self) -> Messages:
        return self.prompt


class RatedLine(Tags):
    """HelpSteer and similar data sets: one rated response per line. Responses to the same prompt are compared."""

    prompt: Conversation
    response: Filled
    helpfulness: Rating | None = None
    score: Rating | None = None
    rating: Rating | None = None
    correctness: Rating | None = None
    coherence: Rating | None = None
    complexity: Rating | None = None
    verbosity: Rating | None = None
    model: Text = ""
    labeler: Person | None = None
    judge: Person | None = None

    def records(self, source: str, told: list[str]) -> list[Record]:
        given = [value for value in (self.helpfulness, self.score, self.rating) if value is not None]
        if len(given) != 1:
            raise ValueError("must hold one of helpfulness, score or rating")
        names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
        aspects = {name: rating for name in names if (rating := getattr(self, name)) is not None}
        rated = Rated(self.response, self.model or source, given[0], aspects)
        return [RatedRecord(self._prompt(self.prompt), rated, who(self.labeler, self.judge, source))]
