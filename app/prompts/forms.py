"""What the pages of prompts send."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.form_fields import CleanLine, ExactText


class PromptFilter(BaseModel):
    """Empty means any; of splits, any but `withdrawn`. `after` is the id of the last prompt of the page before."""

    split: Literal["", "train", "heldout", "regression", "calibration", "withdrawn"] = ""
    difficulty: Literal["", "easy", "hard", "adversarial"] = ""
    domain: Annotated[str, Field(max_length=200)] = ""
    text: Annotated[str, Field(max_length=200)] = ""
    after: Annotated[int, Field(ge=0)] = 0


class PromptForm(BaseModel):
    """A prompt that is typed: a question, and what stands before it as the system prompt."""

    text: Annotated[ExactText, Field(max_length=50_000)] = ""
    system: Annotated[ExactText, Field(max_length=50_000)] = ""
    split: Literal["train", "heldout", "regression", "calibration"] = "train"
    difficulty: Literal["easy", "hard", "adversarial"] = "easy"
    domain: Annotated[CleanLine, Field(max_length=200)] = ""
    safety_category: Annotated[CleanLine, Field(max_length=200)] = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": self.text}]


class TagsForm(BaseModel):
    """What can be changed of a prompt that has responses: it decides nothing about which split they belong to."""

    difficulty: Literal["easy", "hard", "adversarial"] = "easy"
    domain: Annotated[CleanLine, Field(max_length=200)] = ""
    safety_category: Annotated[CleanLine, Field(max_length=200)] = ""


class SplitForm(BaseModel):
    split: Annotated[str, Field(max_length=20)] = ""
