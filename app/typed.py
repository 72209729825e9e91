"""What was typed into a form, before it is checked: a form that is refused comes back with it, and with the reason."""

from typing import Annotated

from fastapi import Depends, Request
from pydantic import ValidationError

from app.errors import InvalidInput


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
