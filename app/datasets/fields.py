"""Field types for the lines of import files, and the base classes of all lines."""

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.datasets.moments import Moment
from app.datasets.records import JudgmentRecord, Labeler, PromptRecord, Record
from app.datasets.transcripts import (
    KEPT_FIELDS,
    Turns,
    answer_follows,
    is_message,
    join_runs,
    prompt_turns,
    storable,
    turns_of,
)
from app.errors import PrefloopError
from app.form_fields import one_line
from app.prompts.service import Messages, check_messages

SIDES = {"a": -1, "tie": 0, "b": 1}
# Fields with a model's answer. If a transcript's prompt ends with "Assistant:", the answer begins with that mark's
# space.
ANSWERS = ("response_a", "response_b", "response", "completion", "chosen", "rejected")
TAGS = ("domain", "topic", "difficulty", "safety_category", "split")
_WHOLE = re.compile(r"\s*[-+]?\d{1,18}(\.0*)?\s*\Z")


def not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def conversation(value: object) -> list[dict[str, str]]:
    """Return the messages of a prompt, from a text, a transcript or a list of messages.

    Raises:
        ValueError: it cannot be read, or does not ask for one more assistant turn.
    """
    return messages_of(prompt_turns(value))


def messages_of(turns: Turns) -> list[dict[str, str]]:
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        check_messages(messages)
    except PrefloopError as error:
        raise ValueError(error.message) from error
    return messages


def _messages(value: object) -> list[dict[str, str]]:
    """Return the messages. In a transcript, consecutive turns of one speaker are merged."""
    return messages_of(join_runs(prompt_turns(value))) if isinstance(value, str) else conversation(value)


def answer(value: object) -> str:
    """Return an assistant's answer: a string, a message, or a list with one message."""
    if is_message(value) or isinstance(value, list):
        turns = turns_of(value)
        if len(turns) == 1 and turns[0][0] == "assistant":
            value = turns[0][1]
    if not isinstance(value, str):
        raise ValueError("must be a string or a list of one assistant message")
    return not_blank(storable(value))


def _side(value: object) -> int:
    if isinstance(value, str) and value.strip().lower() in SIDES:
        return SIDES[value.strip().lower()]
    raise ValueError('must be "A", "B" or "tie"')


def _whole(value: object) -> object:
    """Convert a whole number as tables write it: -2.0, or "-2" in CSV."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.match(value):
        return int(float(value)) if "." in value else int(value)
    return value


def _named(value: object) -> object:
    """Convert a number to text, because data sets often name their items by number."""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return str(value) if type(value) is int else value


Text = Annotated[str, AfterValidator(storable)]
Name = Annotated[str, Field(max_length=200), AfterValidator(storable), AfterValidator(not_blank)]
# Name or number of somebody who judged or wrote. Spellings that differ only in spaces are one person.
Person = Annotated[
    str,
    BeforeValidator(_named),
    Field(max_length=200),
    AfterValidator(storable),
    AfterValidator(one_line),
    AfterValidator(not_blank),
]
# Appears in lists, tables and filters of many pages.
Tag = Annotated[str, Field(max_length=200), AfterValidator(storable)]
Filled = Annotated[Text, AfterValidator(not_blank)]
Conversation = Annotated[list[dict[str, str]], BeforeValidator(_messages)]
Choice = Annotated[int, BeforeValidator(_side)]
Whole = BeforeValidator(_whole)
# The widest range of any scale; a rubric with fewer steps refuses the rest.
Preference = Annotated[int, Whole, Field(ge=-4, le=4, strict=True)]
PairId = Annotated[Name, BeforeValidator(_named)]
Rating = Annotated[float, Field(allow_inf_nan=False)]


def of_different_people(choices: object) -> object:
    """Refuse an object that names one labeler in two spellings: only the later answer would count."""
    if isinstance(choices, dict) and len({one_line(str(name)) for name in choices}) < len(choices):
        raise ValueError("names one labeler twice")
    return choices


def is_missing(value: object) -> bool:
    """Tell whether a field is missing: null, or the NaN that tables have instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


class Line(BaseModel):
    """A line of a format. Missing fields count as absent, and so do empty texts in optional fields.

    items: fields that hold a list of objects, with the keys that are read in these.
    """

    model_config = ConfigDict(extra="ignore", populate_by_name=True)
    items: ClassVar[Mapping[str, frozenset[str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _said(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        # For fields that take anything (prompts and answers), an empty text is invalid rather than absent.
        fields = cls.model_fields.items()
        optional = {name for name, field in fields if not field.is_required() and field.annotation is not Any}
        return {
            name: value
            for name, value in values.items()
            if not is_missing(value) and not (value == "" and name in optional)
        }

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        aliases = {field.alias for field in cls.model_fields.values() if field.alias}
        return frozenset(cls.model_fields) | aliases

    @classmethod
    def ignored(cls, values: Mapping[str, object]) -> set[str]:
        """Return the fields that the format does not read, including those within lists of messages or answers."""
        found = {name for name in values.keys() - cls.known_fields() if not is_missing(values[name])}
        for name in values.keys() & cls.known_fields():
            value = values[name]
            if isinstance(value, list) and value and isinstance(value[0], dict):
                kept = cls.items.get(name, KEPT_FIELDS)
                for item in value:
                    if isinstance(item, dict):
                        found |= {
                            f"{name}[].{key}" for key in item.keys() - kept if item[key] not in (None, "", [], {})
                        }
        return found

    @abstractmethod
    def records(self, source: str, told: list[str]) -> list[Record]:
        """Return the records in the line.

        Args:
            source: name for the labeler and the responses' origin if the line has none.
            told: notes on what may surprise people are appended here, worded the same for every line they apply to.

        Raises:
            ValueError: the line contradicts itself.
        """


class Tags(Line):
    """The slice tags of a prompt, at the top level of the line or in an object called `tags`."""

    domain: Tag = ""
    topic: Tag = ""  # another name for domain
    difficulty: Literal["easy", "hard", "adversarial"] = "easy"
    safety_category: Tag | None = None
    split: Literal["train", "heldout", "regression", "calibration"] | None = None
    tags: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _lift_tags(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("tags"), dict):
            known = {name: values["tags"][name] for name in TAGS if not is_missing(values["tags"].get(name))}
            return known | {name: value for name, value in values.items() if not is_missing(value)}
        return values

    @model_validator(mode="before")
    @classmethod
    def _space_of_the_mark(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("prompt"), str) and answer_follows(values["prompt"]):
            said = {name: values[name] for name in ANSWERS if isinstance(values.get(name), str)}
            return values | {name: text.removeprefix(" ") for name, text in said.items()}
        return values

    @classmethod
    def ignored(cls, values: Mapping[str, object]) -> set[str]:
        tags = values.get("tags")
        inside = tags if isinstance(tags, dict) else {}
        return super().ignored(values) | {
            f"tags.{name}" for name in inside.keys() - {*TAGS} if not is_missing(inside[name])
        }

    def _prompt(self, messages: Messages) -> PromptRecord:
        domain = self.domain or self.topic
        return PromptRecord(messages, self.split, domain, self.difficulty, self.safety_category or None)


class Answer(Line):
    """A choice or a preference, with other data about the judgment. `judge` names an AI judge."""

    choice: Choice | None = None
    preference: Preference | None = None
    rationale: Text = ""
    submitted_at: Moment | None = None
    duration_ms: Annotated[int, Whole, Field(ge=0, lt=2**63)] | None = None
    labeler: Person | None = None
    judge: Person | None = None
    aspects: dict[Name, Preference] | None = None  # preferences by the name of the rubric's aspect

    @model_validator(mode="after")
    def _agree(self) -> "Answer":
        if self.choice is not None and self.preference is not None and _sign(self.preference) != self.choice:
            raise ValueError("choice and preference name different sides (a preference above 0 means B)")
        if self.aspects and self.preference is None:
            raise ValueError("has aspects but no overall preference")
        if self.labeler and self.judge:
            raise ValueError("names both a labeler and an AI judge (judge); a judgment has only one of them")
        return self

    def _judgment(self, source: str, pair_id: str | None = None) -> JudgmentRecord | None:
        if self.choice is None and self.preference is None:
            return None
        side = _sign(self.preference) if self.preference is not None else self.choice
        assert side is not None
        by = who(self.labeler, self.judge, source)
        said = (side, self.preference, self.rationale, self.submitted_at, self.duration_ms, pair_id)
        return JudgmentRecord(by, *said, self.aspects or {})


def who(labeler: str | None, judge: str | None, source: str) -> Labeler:
    return Labeler(judge, "ai_judge") if judge else Labeler(labeler or source)


def _sign(preference: int) -> int:
    return (preference > 0) - (preference < 0)
