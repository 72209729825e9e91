"""The form that starts a constitution run."""

from typing import Annotated

from pydantic import BaseModel, Field, model_validator

from app.form_fields import Number

MOST = 2000  # prompts of a run
LONGEST = 100_000  # characters of a revision


class StartForm(BaseModel):
    """An empty `domain` is any domain; an empty `seed` is drawn at random. `longest` limits a revision's characters."""

    judge: int = Field(ge=1, lt=2**63)
    count: int = Field(100, ge=1, le=MOST)
    domain: Annotated[str, Field(max_length=200)] = ""
    candidates: bool = False
    demonstrations: bool = False
    longest: int = Field(4000, ge=1, le=LONGEST)
    seed: Number = Field(None, ge=0, lt=2**31)

    @model_validator(mode="after")
    def becomes_something(self) -> "StartForm":
        if not (self.candidates or self.demonstrations):
            raise ValueError("choose what a revision becomes: a comparison, a demonstration, or both")
        return self
