"""What was typed into a form, before it is checked: a form that is refused comes back with it, and with the reason."""

import re
import unicodedata
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BeforeValidator, Field, ValidationError

from app.errors import InvalidInput


def as_typed(text: str) -> str:
    """A text as it comes back from a browser that was given it to edit: with one kind of line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _exact(text: object) -> object:
    """Browsers send line ends as CRLF and count them as one character; PostgreSQL stores no NUL."""
    return text.replace("\r\n", "\n").replace("\0", "") if isinstance(text, str) else text


def _clean(text: object) -> object:
    return text.strip() if isinstance(text := _exact(text), str) else text


# In a line, which stands among words of ours, these have no use but to hide or to turn what follows: what has no width,
# and what embeds or overrides a direction.
_HIDING = re.compile("[\0\u00ad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


def one_line(text: str) -> str:
    """A name as it is stored and looked for: on one line, in one Unicode form, without what cannot be seen. So `Zoé` is
    one person, with the accent typed apart or not, and with a space behind."""
    return " ".join(_HIDING.sub("", unicodedata.normalize("NFC", text)).split())


def _line(text: object) -> object:
    return one_line(text) if isinstance(text, str) else text


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


# Text fields of forms. ExactText is learned by a model, so spaces around it stay; the others are text of several lines,
# text of one line, and text that may be empty.
ExactText = Annotated[str, BeforeValidator(_exact)]
CleanText = Annotated[str, BeforeValidator(_clean)]
CleanLine = Annotated[str, BeforeValidator(_line)]
EmptyIsNone = BeforeValidator(_none_if_empty)
Number = Annotated[Annotated[int, Field(ge=0, lt=2**63)] | None, EmptyIsNone]


async def _typed(request: Request) -> dict[str, str]:
    # Not a Form() model: a wrong field must not cost what was typed in the others.
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


TypedDep = Annotated[dict[str, str], Depends(_typed)]


def reasons_of(error: ValidationError) -> dict[str, str]:
    """Why each wrong field is refused, by its name."""
    return {str(each["loc"][0]): each["msg"] for each in error.errors()}


def not_accepted(reasons: dict[str, str]) -> InvalidInput:
    problems = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return InvalidInput(f"Not accepted: {problems}.", "Correct it and send the form again.")
