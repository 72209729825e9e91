"""The form that the rubric editor sends. It keeps the text as typed until it can be accepted."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Form, Request
from pydantic import ValidationError
from starlette.datastructures import FormData

from app.documents import (
    DEFAULT_ASPECTS,
    DEFAULT_FLAGS,
    VISIBLE,
    Aspect,
    Document,
    Example,
    Flag,
    Principle,
    QuizItem,
    RubricContent,
)
from app.errors import InvalidInput
from app.models import Rubric
from app.rubrics.principles import drafted
from app.rubrics.retaking import RETAKES, Retake

Row = dict[str, str]


class RowKind(NamedTuple):
    """A list in the rubric whose rows are edited: the name of one row, its document type, and its fields."""

    one: str
    document: type[Document]
    fields: dict[str, str]


ROW_KINDS = {
    "aspects": RowKind("Aspect", Aspect, {"name": "name", "question": "question"}),
    "flags": RowKind("Flag", Flag, {"name": "name", "label": "label"}),
    "examples": RowKind(
        "Example",
        Example,
        {"prompt": "prompt", "better": "better response", "worse": "worse response", "reason": "reason"},
    ),
    "quiz": RowKind(
        "Question",
        QuizItem,
        {
            "prompt": "prompt",
            "first": "first response",
            "second": "second response",
            "answer": "right answer",
            "feedback": "explanation",
        },
    ),
    "principles": RowKind("Principle", Principle, {"text": "text"}),
}
SWITCHES = ("allow_tie", "allow_both_bad", "allow_cannot_judge")
NOTHING_REMOVED: dict[str, Row] = {kind: {} for kind in ROW_KINDS}
ANSWERS = {"-1": "First is better", "0": "Tie", "1": "Second is better"}
# Fields with fixed choices: a draft cannot hold anything else.
CHOICES = ("strengths", "rationale_rule")
# Characters of the whole form: more than any rubric may have.
MAX_DRAFT = 5_000_000


class RubricRefused(InvalidInput):
    """The form is not a valid rubric yet.

    Attributes:
        reasons: what is wrong with each field, by the field's id in the page.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        more = f" And {len(reasons) - 3} more." if len(reasons) > 3 else ""
        super().__init__(" ".join(f"{reason}." for reason in list(reasons.values())[:3]) + more, "Nothing was saved.")
        self.reasons = reasons


class RubricForm(NamedTuple):
    """The editor's fields as text; lists hold their rows in order.

    revision: the revision of the draft that the editor began from; 0 if there was none. removed: the row last removed
    from each list, with its index (`at`), to be restored. retake: when publishing, whether labelers who passed the quiz
    have to take it again.
    """

    guideline: str
    strengths: str
    allow_tie: bool
    allow_both_bad: bool
    allow_cannot_judge: bool
    rationale_rule: str
    rows: dict[str, list[Row]]
    revision: int
    removed: dict[str, Row]
    retake: Retake = "changed"

    @classmethod
    def of(cls, rubric: Rubric | None, revision: int = 0) -> "RubricForm":
        """Fill the fields from a rubric, or with the defaults for a first one.

        Nothing is checked: a stored rubric must be shown even if the rules for new text have become stricter.
        """
        if rubric is None:
            begun = {"aspects": DEFAULT_ASPECTS, "flags": DEFAULT_FLAGS}
            rows = {kind: [row.model_dump() for row in begun.get(kind, ())] for kind in ROW_KINDS}
            rows["principles"] = drafted_rows("", [aspect.question for aspect in DEFAULT_ASPECTS])
            return cls("", "3", True, True, True, "optional", rows, revision, NOTHING_REMOVED)
        return cls(
            guideline=rubric.guideline,
            strengths=str(rubric.strengths),
            allow_tie=rubric.allow_tie,
            allow_both_bad=rubric.allow_both_bad,
            allow_cannot_judge=rubric.allow_cannot_judge,
            rationale_rule=rubric.rationale_rule,
            rows={kind: [as_text(kind, row) for row in getattr(rubric, kind)] for kind in ROW_KINDS},
            revision=revision,
            removed=NOTHING_REMOVED,
        )

    def filled(self) -> "RubricForm":
        """Return the form without rows that are empty."""
        rows = {kind: [row for row in rows if is_filled(row)] for kind, rows in self.rows.items()}
        return self._replace(rows=rows)

    def content(self) -> RubricContent:
        """Return the form as a rubric, without empty rows.

        Raises:
            RubricRefused: something is missing, too long, or not allowed.
        """
        try:
            return RubricContent.model_validate(
                {
                    "guideline": self.guideline,
                    "strengths": self.strengths,
                    **{name: getattr(self, name) for name in SWITCHES},
                    "rationale_rule": self.rationale_rule,
                    **{kind: [_as_stored(row) for row in rows] for kind, rows in self.filled().rows.items()},
                }
            )
        except ValidationError as error:
            raise RubricRefused(_reasons(error)) from error

    def draft(self) -> dict[str, Any]:
        """Return the columns of a draft, without empty rows. Text that is not a valid rubric yet stays as it was typed.

        Raises:
            RubricRefused: it is far too long, or has a choice that the editor does not offer.
        """
        try:
            return self.content().model_dump(mode="json")
        except RubricRefused as refused:
            reasons = {name: reason for name, reason in refused.reasons.items() if name in CHOICES}
        rows = self.filled().rows
        length = len(self.guideline) + sum(len(text) for row in chain(*rows.values()) for text in row.values())
        if length > MAX_DRAFT:
            reasons["guideline"] = f"The whole draft has {length:,} characters; at most {MAX_DRAFT:,}"
        if reasons:
            raise RubricRefused(reasons)
        return {
            "guideline": self.guideline,
            "strengths": int(self.strengths),
            **{name: getattr(self, name) for name in SWITCHES},
            "rationale_rule": self.rationale_rule,
            **rows,
        }


def drafted_rows(guideline: str, questions: Iterable[str]) -> list[Row]:
    """Rows of principles, drafted from a rubric's criteria."""
    return [{"text": text} for text in drafted(guideline, questions)]


def complete(kind: str, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Yield the rows that are valid, as they would be stored."""
    for row in rows:
        with contextlib.suppress(ValidationError):
            yield ROW_KINDS[kind].document.model_validate(_as_stored(row)).model_dump()


def as_text(kind: str, row: Mapping[str, Any]) -> Row:
    return {field: str(row.get(field, "")) for field in ROW_KINDS[kind].fields}


def _as_stored(row: Row) -> dict[str, Any]:
    stored: dict[str, Any] = dict(row)
    if "name" in row:
        stored["name"] = " ".join(row["name"].lower().split())
    if row.get("answer") in ANSWERS:
        stored["answer"] = int(row["answer"])
    return stored


def is_filled(row: Row) -> bool:
    return any(text.strip() for text in row.values())


def field_id(kind: str, index: int, field: str) -> str:
    return f"{kind}-{index}-{field}"


def _reasons(error: ValidationError) -> dict[str, str]:
    """Return why each field is refused, by its id in the page, in words for the user."""
    reasons: dict[str, str] = {}
    for each in error.errors():
        match each["loc"]:
            case (str(kind), int(index), str(field)):
                row = ROW_KINDS[kind]
                reasons[field_id(kind, index, field)] = f"{row.one} {index + 1}: the {row.fields[field]} {_why(each)}"
            case (str(kind),) if kind in ROW_KINDS:
                reasons[kind] = f"{ {'quiz': 'Quiz'}.get(kind, kind.capitalize()) }: {_why(each)}"
            case (str(field),):
                reasons[field] = f"The {field.replace('_', ' ')} {_why(each)}"
            case _:
                reasons["quiz"] = f"Quiz: {_why(each)}"
    return reasons


def _why(error: Any) -> str:
    limits, given = error.get("ctx", {}), error["input"]
    match error["type"]:
        case "value_error":
            return str(limits["error"])
        case "string_too_long":
            return f"has {len(given):,} characters; at most {limits['max_length']:,}"
        case "too_long":
            return f"{limits['actual_length']} are too many; at most {limits['max_length']}"
        case "string_too_short" | "missing":
            return "is empty"
        case "string_pattern_mismatch" if limits["pattern"] == VISIBLE or not given.strip():
            return "is empty"
        case "string_pattern_mismatch":
            return (
                "may contain only a-z, 0-9, spaces, - and _, begins with a letter or digit, and has at most 40 "
                "characters"
            )
        case "literal_error" if not given:
            return "is not chosen"
        case _:
            return f"cannot be “{str(given)[:40]}”"


async def _sent(request: Request) -> FormData:
    return await request.form()


def _typed(form: Annotated[FormData, Depends(_sent)], revision: Annotated[str, Form()] = "") -> RubricForm:
    return RubricForm(
        guideline=_text(form, "guideline"),
        strengths=_text(form, "strengths"),
        allow_tie="allow_tie" in form,
        allow_both_bad="allow_both_bad" in form,
        allow_cannot_judge="allow_cannot_judge" in form,
        rationale_rule=_text(form, "rationale_rule"),
        rows={kind: _rows(form, kind) for kind in ROW_KINDS},
        revision=int(revision) if revision.isdecimal() and len(revision) < 10 else 0,
        removed={kind: _removed(form, kind) for kind in ROW_KINDS},
        retake=next((name for name in RETAKES if name == _text(form, "retake")), "changed"),
    )


def _text(form: FormData, name: str) -> str:
    return next(iter(_texts(form, name)), "")


def _texts(form: FormData, name: str) -> list[str]:
    """Normalize texts: browsers send line ends as CRLF but count them as one character, and PostgreSQL
    stores no NUL."""
    return [v.replace("\r\n", "\n").replace("\0", "") for v in form.getlist(name) if isinstance(v, str)]


def _rows(form: FormData, kind: str) -> list[Row]:
    columns = {field: _texts(form, f"{kind}.{field}") for field in ROW_KINDS[kind].fields}
    length = max(map(len, columns.values()))
    return [{field: values[n] if n < len(values) else "" for field, values in columns.items()} for n in range(length)]


def _removed(form: FormData, kind: str) -> Row:
    fields = [*ROW_KINDS[kind].fields, "at"]
    return {field: _text(form, f"removed.{kind}.{field}") for field in fields if f"removed.{kind}.{field}" in form}


RubricFormDep = Annotated[RubricForm, Depends(_typed)]
