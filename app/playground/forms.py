"""Forms that the pages of the playground send."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.demonstrations.forms import MAX_TEXT as MAX_CORRECTION
from app.form_fields import CleanLine, CleanText, ExactText

MAX_TEXT = 20_000


class ChatForm(BaseModel):
    """The two models to talk to. blind: hide which is which until the user votes."""

    first_id: Annotated[int, Field(ge=1, lt=2**63)]
    second_id: Annotated[int, Field(ge=1, lt=2**63)]
    blind: bool = False


class SayForm(BaseModel):
    """The same idempotency key twice is the same message sent twice."""

    idempotency_key: UUID
    text: Annotated[CleanText, Field(max_length=MAX_TEXT)] = ""


class VoteForm(BaseModel):
    vote: Annotated[int, Field(ge=-1, le=1)]


class AnswerForm(BaseModel):
    """Which of a message's two answers: 0 the first, 1 the second."""

    side: Annotated[int, Field(ge=0, le=1)]


class FailureForm(AnswerForm):
    """How badly an answer failed, and in which category; rated like a red-team attempt."""

    severity: Annotated[int, Field(ge=1, le=3)]
    safety_category: Annotated[CleanLine, Field(min_length=1, max_length=100)]


class CorrectionForm(AnswerForm):
    """The answer as it should have been."""

    text: Annotated[ExactText, Field(max_length=MAX_CORRECTION)] = ""


Kept = Literal["", "failure", "correction"]  # what the page says was just stored
