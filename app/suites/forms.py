"""What the forms of suites send."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from app.domain.suites import Bound
from app.form_fields import CleanLine, EmptyIsNone, Number

MAX_NAME = 100


class NewSuiteForm(BaseModel):
    """Beside the file. Without a name the suite is called as the file is."""

    name: CleanLine = Field("", max_length=MAX_NAME)


class GateForm(BaseModel):
    """The largest loss, in points of a hundred; empty for a suite that holds nothing back."""

    largest_loss: Annotated[Annotated[float, Field(ge=0, le=100)] | None, EmptyIsNone] = None
    bound: Bound = "high"


class DemandForm(BaseModel):
    """A policy, and the suite that it takes; all suites if none is given."""

    model: int = Field(ge=1, lt=2**63)
    suite: Number = None


class StarterForm(BaseModel):
    names: Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = Field(
        [], max_length=20
    )
