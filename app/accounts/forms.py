"""What the account pages send."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.typed import CleanLine

Role = Literal["labeler", "admin", "operator"]
Text = Annotated[str, Field(max_length=500)]


class SignInForm(BaseModel):
    email: Text = ""
    password: Text = ""
    next: Text = "/"


class RedeemForm(BaseModel):
    email: Text = ""
    name: Annotated[CleanLine, Field(max_length=500)] = ""
    password: Text = ""


class RolesForm(BaseModel):
    roles: list[Role] = []
    is_active: bool = False


class InviteForm(BaseModel):
    roles: list[Role] = []
    # What judges through this account: judgments are never taken for a person's when they are not.
    kind: Literal["person", "simulated", "ai_judge"] = "person"
