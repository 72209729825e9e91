"""What the prompts page's filter sends."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class PromptFilter(BaseModel):
    """Empty means any; of splits, any but `withdrawn`. `after` is the id of the last prompt of the page before."""

    split: Literal["", "train", "heldout", "regression", "calibration", "withdrawn"] = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    domain: Annotated[str, Field(max_length=200)] = ""
    text: Annotated[str, Field(max_length=200)] = ""
    after: Annotated[int, Field(ge=0)] = 0
