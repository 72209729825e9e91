"""Form that the page of thumbs sends."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

MAX_RATIONALE = 2000


class ThumbForm(BaseModel):
    """A thumb on the response with this text to this prompt.

    Responses are not identified by their ids, because ids would reveal which policy is newer.
    """

    prompt_id: Annotated[int, Field(ge=1, lt=2**63)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    liked: bool
    rationale: Annotated[str, Field(max_length=MAX_RATIONALE)] = ""
    duration_ms: Annotated[
        int | None, Field(ge=0, lt=2**63), BeforeValidator(lambda value: None if value == "" else value)
    ] = None
