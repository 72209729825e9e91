"""Text typed into a form, before it is checked. A refused form comes back with it, and with the reason."""

import re
import unicodedata
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BeforeValidator, Field, ValidationError

from app.errors import InvalidInput


def as_typed(text: str) -> str:
    """Return a text as a browser returns it after editing: with a single kind of line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _exact(text: object) -> object:
    """Normalize a text: browsers send line ends as CRLF but count them as one character, and PostgreSQL
    stores no NUL."""
    return text.replace("\r\n", "\n").replace("\0", "") if isinstance(text, str) else text


def _clean(text: object) -> object:
    return text.strip() if isinstance(text := _exact(text), str) else text


# Characters that are useless in a line among our own text except to hide or reverse what follows: zero-width ones, and
# those that embed or override a direction.
_HIDING = re.compile("[\0\u00ad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


def one_line(text: str) -> str:
    """Normalize a name for storing and lookup: one line, Unicode NFC, without invisible characters.

    So `Zoé` is one person, however the accent was typed and with or without a trailing space.
    """
    return " ".join(_HIDING.sub("", unicodedata.normalize("NFC", text)).split())


def _line(text: object) -> object:
    return one_line(text) if isinstance(text, str) else text


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


# Text fields of forms. A model learns from ExactText, so its surrounding spaces stay. CleanText has several lines,
# CleanLine has one, and fields with EmptyIsNone may be empty.
ExactText = Annotated[str, BeforeValidator(_exact)]
CleanText = Annotated[str, BeforeValidator(_clean)]
CleanLine = Annotated[str, BeforeValidator(_line)]
EmptyIsNone = BeforeValidator(_none_if_empty)
Number = Annotated[Annotated[int, Field(ge=0, lt=2**63)] | None, EmptyIsNone]


async def _typed(request: Request) -> dict[str, str]:
    # Not a Form() model, so that one wrong field does not lose what was typed in the others.
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


TypedDep = Annotated[dict[str, str], Depends(_typed)]


def reasons_of(error: ValidationError) -> dict[str, str]:
    """Return why each wrong field is refused, by field name."""
    return {str(each["loc"][0]): each["msg"] for each in error.errors()}


def not_accepted(reasons: dict[str, str]) -> InvalidInput:
    problems = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return InvalidInput(f"Not accepted: {problems}.", "Correct it and send the form again.")
