"""What the prompts page's filter sends."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class PromptFilter(BaseModel):
    """Empty means any. `after` is the id of the last prompt of the page before."""

    split: Literal["", "train", "heldout", "regression", "calibration"] = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    domain: Annotated[str, Field(max_length=200)] = ""
    text: Annotated[str, Field(max_length=200)] = ""
    after: Annotated[int, Field(ge=0)] = 0
