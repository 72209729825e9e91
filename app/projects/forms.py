"""What the project pages send."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from app.form_fields import CleanLine, CleanText, EmptyIsNone, ExactText


def _share(percent: object) -> object:
    """`60` -> 0.6. What is no number stays, and is refused."""
    try:
        return float(percent) / 100 if isinstance(percent, str) and percent else percent
    except ValueError:
        return percent


Percent = BeforeValidator(_share)  # typed as percent, stored as a share


class NewProjectForm(BaseModel):
    name: Annotated[CleanLine, Field(max_length=200)] = ""
    description: Annotated[ExactText, Field(max_length=2000)] = ""


class ModelForm(BaseModel):
    model: Annotated[CleanText, Field(max_length=500)] = ""


class SettingsForm(BaseModel):
    name: Annotated[CleanLine, Field(min_length=1, max_length=200)]
    description: Annotated[ExactText, Field(max_length=2000)] = ""
    overlap: Annotated[int, Field(ge=1, le=100)]
    lease_minutes: Annotated[int, Field(ge=1, le=1440)]
    review_threshold: Annotated[float, Percent, Field(ge=0, le=1)]
    # The threshold whose effect on decided comparisons was shown: another one is shown before it is saved.
    shown_threshold: Annotated[float | None, Percent, EmptyIsNone] = None
    samples_per_prompt: Annotated[int, Field(ge=1, le=64)]
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)]
    temperature: Annotated[float, Field(gt=0, le=5)]


class DeleteForm(BaseModel):
    """`address`: the project's, typed to make sure."""

    address: Annotated[CleanLine, Field(max_length=200)] = ""
