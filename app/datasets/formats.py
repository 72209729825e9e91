"""The formats of import files: which keys a line has, and what it becomes. Documented in docs/import.md.

Fields a format does not know are left out of the import and named in its report: data sets carry columns of their own,
and refusing them would make people edit files that are fine.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.datasets.moments import Moment
from app.datasets.records import DemonstrationRecord, JudgmentRecord, PairRecord, PromptRecord, Record
from app.datasets.transcripts import Turns, join_runs, turns_of
from app.errors import PrefloopError
from app.prompts.service import check_messages
from app.typed import one_line

SIDES = {"a": -1, "tie": 0, "b": 1}


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which the database cannot store")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _conversation(value: object) -> list[dict[str, str]]:
    """A plain string is the user's one message."""
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("must be a string or a list of messages with role and content")
    if not all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages):
        raise ValueError("holds a message without a role or content, or one that is not a string")
    kept = [{"role": m["role"], "content": _storable(m["content"])} for m in messages]
    try:
        check_messages(kept)
    except PrefloopError as error:
        raise ValueError(error.message) from error
    return kept


def _answer(value: object) -> str:
    """An assistant's answer: a string, or the one message of a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        message = value[0]
        if message.get("role") == "assistant":
            value = message.get("content")
    if not isinstance(value, str):
        raise ValueError("must be a string or a list of one assistant message")
    return _not_blank(_storable(value))


def _side(value: object) -> int:
    if isinstance(value, str) and value.strip().lower() in SIDES:
        return SIDES[value.strip().lower()]
    raise ValueError('must be "A", "B" or "tie"')


Text = Annotated[str, AfterValidator(_storable)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_storable), AfterValidator(_not_blank)]
# Of whoever judged or wrote: the same name is the same person however it was typed.
Person = Annotated[
    str, Field(max_length=200), AfterValidator(_storable), AfterValidator(one_line), AfterValidator(_not_blank)
]
Filled = Annotated[Text, AfterValidator(_not_blank)]
Conversation = Annotated[list[dict[str, str]], BeforeValidator(_conversation)]
Choice = Annotated[int, BeforeValidator(_side)]
# As far as any scale goes; a rubric with fewer steps refuses the rest.
Preference = Annotated[int, Field(ge=-4, le=4, strict=True)]
# Data sets name their items by numbers as often as by words.
PairId = Annotated[Name, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


def _of_different_people(choices: object) -> object:
    """Of two spellings of one name in an object the later would silently count."""
    if isinstance(choices, dict) and len({one_line(str(name)) for name in choices}) < len(choices):
        raise ValueError("names one labeler twice")
    return choices


class Line(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        aliases = {field.alias for field in cls.model_fields.values() if field.alias}
        return frozenset(cls.model_fields) | aliases

    @abstractmethod
    def record(self, source: str) -> Record:
        """What the line says; `source` names the labeler and the responses' origin where the line does not."""


class Tags(Line):
    """The slice tags a prompt may carry, at the top of the line or in an object called `tags`."""

    domain: Text = ""
    topic: Text = ""  # another word for domain
    difficulty: Literal["easy", "hard", "adversarial"] = "easy"
    safety_category: Text | None = None
    split: Literal["train", "heldout", "regression", "calibration"] | None = None
    tags: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _lift_tags(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("tags"), dict):
            known = {
                name: values["tags"][name]
                for name in ("domain", "topic", "difficulty", "safety_category", "split")
                if name in values["tags"]
            }
            return known | values
        return values

    def _prompt(self, messages: list[dict[str, str]]) -> PromptRecord:
        domain = self.domain or self.topic
        return PromptRecord(messages, self.split, domain, self.difficulty, self.safety_category or None)


class Answer(Line):
    """A choice or a preference, with what else is known about the judgment."""

    choice: Choice | None = None
    preference: Preference | None = None
    rationale: Text = ""
    submitted_at: Moment | None = None
    duration_ms: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "Answer":
        if self.choice is not None and self.preference is not None and _sign(self.preference) != self.choice:
            raise ValueError("choice and preference name different sides (a preference above 0 means B)")
        return self

    def _judgment(self, labeler: str, pair_id: str | None = None) -> JudgmentRecord | None:
        if self.choice is None and self.preference is None:
            return None
        side = _sign(self.preference) if self.preference is not None else self.choice
        assert side is not None
        return JudgmentRecord(
            labeler, side, self.preference, self.rationale, self.submitted_at, self.duration_ms, pair_id
        )


def _sign(preference: int) -> int:
    return (preference > 0) - (preference < 0)


class PromptLine(Tags):
    prompt: Conversation = Field(alias="messages")

    def record(self, source: str) -> Record:
        return self._prompt(self.prompt)


class DemonstrationLine(Tags):
    """A prompt and the answer to imitate, or a whole conversation whose last turn it is."""

    messages: Any = None
    prompt: Any = None
    response: Annotated[str | None, BeforeValidator(_answer)] = None
    completion: Annotated[str | None, BeforeValidator(_answer)] = None
    author: Person | None = None

    def record(self, source: str) -> Record:
        given = [answer for answer in (self.response, self.completion) if answer is not None]
        before = self.prompt if self.prompt is not None else self.messages
        if not given and isinstance(before, list) and before and isinstance(before[-1], dict):
            if before[-1].get("role") != "assistant":
                raise ValueError("has no response, and its messages do not end with the assistant's turn")
            given, before = [_answer(before[-1:])], before[:-1]
        if len(given) != 1 or before is None:
            raise ValueError(
                "must hold a prompt and one of response or completion, or messages that end with the answer"
            )
        return DemonstrationRecord(self._prompt(_conversation(before)), given[0], self.author or source)


class InstructionLine(Tags):
    """Alpaca: an instruction, perhaps with an input, and the output to imitate."""

    instruction: Filled
    input: Text = ""
    output: Filled

    def record(self, source: str) -> Record:
        return DemonstrationRecord(self._prompt(_instruction(self.instruction, self.input)), self.output, source)


def _instruction(instruction: str, given: str) -> list[dict[str, str]]:
    return _conversation(f"{instruction}\n\n{given}" if given.strip() else instruction)


class JudgmentLine(Answer):
    pair_id: PairId
    labeler: Person

    def record(self, source: str) -> Record:
        judgment = self._judgment(self.labeler, self.pair_id)
        if judgment is None:
            raise ValueError("has neither a choice nor a preference")
        return judgment


class _Pair(Tags, Answer):
    """Two responses, and the judgments written beside them."""

    # May be empty: models do answer nothing, and people judge that.
    response_a: Text
    response_b: Text
    pair_id: PairId | None = None
    model_a: Text = ""
    model_b: Text = ""
    labeler: Person | None = None
    choices: Annotated[dict[Person, Choice] | None, BeforeValidator(_of_different_people)] = None  # labeler: choice
    # By which labelers are to be measured. Not `gold`: data sets call so what they know of all their pairs.
    known_answer: Preference | None = None

    @abstractmethod
    def _messages(self) -> list[dict[str, str]]:
        """The conversation both responses answer."""

    def _models(self) -> tuple[str, str]:
        return self.model_a, self.model_b

    def record(self, source: str) -> Record:
        own = self._judgment(self.labeler or source)
        judgments = [JudgmentRecord(labeler, side) for labeler, side in (self.choices or {}).items()]
        model_a, model_b = self._models()
        return PairRecord(
            self._prompt(self._messages()),
            self.response_a,
            self.response_b,
            pair_id=self.pair_id,
            source_a=model_a or source,
            source_b=model_b or source,
            judgments=tuple([own, *judgments] if own else judgments),
            gold=self.known_answer,
        )


class PairLine(_Pair):
    prompt: Conversation = Field(alias="messages")

    def _messages(self) -> list[dict[str, str]]:
        return self.prompt


class ArgumentLine(_Pair):
    """UKPConvArg: which of two arguments for the same side of a debate convinces more."""

    prompt: Filled
    stance: Filled

    def _messages(self) -> list[dict[str, str]]:
        return _conversation(f"{self.prompt}\n\nArgue for this side: {self.stance}")


class PandaLine(_Pair):
    """PandaLM: an instruction with an input, the two models' names in one field, choices by annotator."""

    instruction: Filled
    input: Text = ""
    models: Text = ""
    pair_id: PairId | None = Field(None, alias="id")

    def _messages(self) -> list[dict[str, str]]:
        return _instruction(self.instruction, self.input)

    def _models(self) -> tuple[str, str]:
        first, _, second = self.models.partition("_")
        return (first, second) if second and "_" not in second else (self.model_a, self.model_b)


class TranscriptLine(Tags):
    """HH-RLHF: two transcripts that part at the last assistant turn; or TRL's prompt, chosen and rejected."""

    chosen: Any
    rejected: Any
    prompt: Any = None
    labeler: Person | None = None

    def record(self, source: str) -> Record:
        start = turns_of(self.prompt, "user") if self.prompt is not None else ()
        # With a prompt beside it, a plain string is the response alone, not a transcript.
        whole = None if self.prompt is None else "assistant"
        chosen, rejected = (start + turns_of(value, whole) for value in (self.chosen, self.rejected))
        conversation = _shared(chosen, rejected)
        good, bad = _storable(chosen[-1][1]), _storable(rejected[-1][1])
        if good == bad:
            raise ValueError("chosen and rejected end in the same response")
        prompt = self._prompt(
            _conversation([{"role": role, "content": text} for role, text in join_runs(conversation)])
        )
        # Which response becomes A depends on the texts alone: not on which was chosen, nor on the order of the lines.
        a, b = sorted((good, bad), key=lambda text: hashlib.sha256(f"{prompt.digest}\0{text}".encode()).digest())
        judgment = JudgmentRecord(self.labeler or source, side=-1 if a == good else 1)
        return PairRecord(prompt, a, b, source_a=source, source_b=source, judgments=(judgment,))


def _shared(chosen: Turns, rejected: Turns) -> Turns:
    """The conversation both transcripts have before their last assistant turn."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1][0] != "assistant":
            raise ValueError(f"{name} does not end with an assistant turn")
    if chosen[:-1] != rejected[:-1]:
        pairs = zip(chosen, rejected, strict=False)
        parting = next((n for n, (c, r) in enumerate(pairs, 1) if c != r), min(len(chosen), len(rejected)))
        raise ValueError(
            f"chosen ({len(chosen)} turns) and rejected ({len(rejected)} turns) part at turn {parting}, before their "
            "last assistant turn, so they do not answer the same conversation"
        )
    return chosen[:-1]


@dataclass(frozen=True)
class Format:
    """A format: a line has at least the keys of one of `keys`."""

    line: type[Line]
    keys: tuple[frozenset[str], ...]
    about: str


def _keys(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(keys.split()) for keys in alternatives)


# The most telling keys first: a file's format is the first whose keys its first line has.
FORMATS: Mapping[str, Format] = {
    "pandalm": Format(
        PandaLine, _keys("instruction response_a response_b"), "instruction, input, response_a, response_b, choices"
    ),
    "arguments": Format(
        ArgumentLine,
        _keys("stance prompt response_a response_b"),
        "UKPConvArg: pair_id, topic, prompt, stance, response_a/b",
    ),
    "pairs": Format(
        PairLine,
        _keys("prompt response_a response_b", "messages response_a response_b"),
        "prompt, response_a, response_b; perhaps pair_id, choice or preference, labeler, choices",
    ),
    "preferences": Format(
        TranscriptLine, _keys("chosen rejected"), "chosen, rejected: HH-RLHF transcripts, or messages beside a prompt"
    ),
    "judgments": Format(JudgmentLine, _keys("pair_id labeler"), "pair_id, labeler, choice or preference"),
    "demonstrations": Format(
        DemonstrationLine,
        _keys("prompt response", "prompt completion", "messages response", "messages completion"),
        "prompt and response (or completion), or messages that end with the answer",
    ),
    "instructions": Format(InstructionLine, _keys("instruction output"), "Alpaca: instruction, input, output"),
    "prompts": Format(PromptLine, _keys("prompt", "messages"), "prompt (a string or messages), split and tags"),
}


def detect(line: Mapping[str, object]) -> str | None:
    """The format whose keys this line has, or none."""
    present = line.keys()
    found = next((name for name, f in FORMATS.items() if any(keys <= present for keys in f.keys)), None)
    messages = line.get("messages")
    if found == "prompts" and isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        # A conversation with its answer is no prompt.
        return "demonstrations" if messages[-1].get("role") == "assistant" else found
    return found


def parser(name: str, source: str) -> Callable[[dict[str, object]], Record]:
    """A function from a line's object to its record. It raises ValueError (pydantic's included) for a bad line."""
    line = FORMATS[name].line
    return lambda values: line.model_validate(values).record(source)
