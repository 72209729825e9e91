"""What the pages of the playground send."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from app.typed import CleanText

MAX_TEXT = 20_000


class ChatForm(BaseModel):
    """The two models to talk to; blind: which is which is hidden until you vote."""

    first_id: Annotated[int, Field(ge=1, lt=2**63)]
    second_id: Annotated[int, Field(ge=1, lt=2**63)]
    blind: bool = False


class SayForm(BaseModel):
    """The same idempotency key twice is the same message sent twice."""

    idempotency_key: UUID
    text: Annotated[CleanText, Field(max_length=MAX_TEXT)] = ""


class VoteForm(BaseModel):
    vote: Annotated[int, Field(ge=-1, le=1)]
