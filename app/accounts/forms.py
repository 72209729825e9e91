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


class AccountForm(BaseModel):
    is_admin: bool = False
    is_active: bool = False


class PlaceForm(BaseModel):
    """Whom an administrator puts into which project."""

    user_id: Annotated[int, Field(ge=0, lt=2**63)]
    project: Text = ""
    roles: list[Role] = []


class InviteForm(BaseModel):
    project: Text = ""  # empty: none yet
    roles: list[Role] = []
    is_admin: bool = False
    # What judges through this account: judgments are never taken for a person's when they are not.
    kind: Literal["person", "simulated", "ai_judge"] = "person"
