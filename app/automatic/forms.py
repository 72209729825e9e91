"""Form that the page of automatic rounds sends."""

from typing import Annotated

from pydantic import BaseModel, Field

from app.automatic.service import FEWEST_JUDGMENTS
from app.form_fields import EmptyIsNone


class RuleForm(BaseModel):
    """A rule as it is typed; `agreement` is in percent, empty if it is not checked."""

    judgments: Annotated[int, Field(ge=FEWEST_JUDGMENTS, le=1_000_000)]
    agreement: Annotated[Annotated[float, Field(ge=0, le=100)] | None, EmptyIsNone] = None
    fine: bool = False
    approval: bool = False
