"""Forms that the labelers' pages send."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.form_fields import CleanLine, ExactText

Kind = Literal["person", "imported", "simulated", "ai_judge", "all"]


class LabelersFilter(BaseModel):
    kind: Kind | None = Field(None, description="none: people, or where there are none the first kind there is")
    page: int = Field(0, ge=0, le=100_000)


class PauseForm(BaseModel):
    message: Annotated[ExactText, Field(max_length=2000)] = ""


class RemoveForm(BaseModel):
    reason: Annotated[str, Field(max_length=2000)] = ""
    with_written: bool = Field(False, description="what they wrote is withdrawn too")


class GroupForm(BaseModel):
    name: Annotated[CleanLine, Field(max_length=80)] = ""


class MembersForm(BaseModel):
    labeler_ids: list[int] = []
