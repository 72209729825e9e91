"""Forms that the account pages send."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, Field

from app.form_fields import CleanLine

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


class ListFilter(BaseModel):
    """A list's filter and page: people whose name or address contains the text."""

    text: Annotated[CleanLine, Field(max_length=200)] = ""
    page: Annotated[int, Field(ge=0, le=100_000)] = 0

    def query(self, **other: object) -> str:
        """Return the query string of this list, or of another page of it."""
        given = self.model_dump(exclude_defaults=True) | other
        return f"?{urlencode(given)}" if given else ""


class AccountForm(BaseModel):
    is_admin: bool = False
    is_active: bool = False


class PlaceForm(BaseModel):
    """The form that adds a person to a project."""

    email: Text = ""
    project: Text = ""
    roles: list[Role] = []


class InviteForm(BaseModel):
    project: Text = ""  # empty: no project yet
    roles: list[Role] = []
    is_admin: bool = False
    # Who or what judges through this account. Judgments by machines are never counted as people's.
    kind: Literal["person", "simulated", "ai_judge"] = "person"


class NameForm(BaseModel):
    name: Annotated[CleanLine, Field(max_length=200)] = ""


class PasswordForm(BaseModel):
    current: Text = ""
    new: Text = ""
