"""Forms that the page of a project's members sends."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Role = Literal["labeler", "admin", "operator"]


class RolesForm(BaseModel):
    roles: list[Role] = []


class AddForm(RolesForm):
    email: Annotated[str, Field(max_length=500)] = ""


class LinkForm(RolesForm):
    # Who or what judges through the new account: see app.accounts.forms.InviteForm.
    kind: Literal["person", "simulated", "ai_judge"] = "person"
