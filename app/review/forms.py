"""What the review page sends."""

from typing import Annotated

from pydantic import BaseModel, Field


class VerdictForm(BaseModel):
    """`verdict` is in canonical order: -3 (A much better) to 3 (B much better)."""

    verdict: Annotated[int, Field(ge=-3, le=3)]
    note: Annotated[str, Field(max_length=10_000)] = ""


class MoreLabelersForm(BaseModel):
    more: Annotated[int, Field(ge=1, le=20)] = 1


class WithdrawForm(BaseModel):
    note: Annotated[str, Field(max_length=10_000)] = ""
