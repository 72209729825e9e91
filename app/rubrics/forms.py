"""What the rubric editor sends."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

MAX_GUIDELINE = 50_000


def _clean(text: str) -> str:
    """Browsers send line ends as CRLF and count them as one character; PostgreSQL stores no NUL."""
    return text.replace("\r\n", "\n").replace("\0", "")


class RubricForm(BaseModel):
    """The editor's fields.

    Attributes:
        revision: of the draft that the editor began from; 0 where there was none.
        allow_tie: a checkbox, absent when it is off.
    """

    guideline: Annotated[str, BeforeValidator(_clean), Field(max_length=MAX_GUIDELINE)] = ""
    strengths: Annotated[int, Field(ge=1, le=3)] = 3
    allow_tie: bool = False
    rationale_rule: Literal["optional", "required"] = "optional"
    revision: Annotated[int, Field(ge=0)] = 0
