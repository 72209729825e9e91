"""The audit log in the browser, for a project's admins."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.access.guards import AdminDep, ProjectDep
from app.db import SessionDep
from app.form_fields import CleanLine, Number
from app.limits import FormRoute
from app.render import page
from app.trail import queries

router = APIRouter(prefix="/projects/{project_slug}/audit-log", route_class=FormRoute)


class Wanted(BaseModel):
    """Empty means any. person: `queries.NOBODY` is the service. before: the last event of the page before."""

    action: Annotated[CleanLine, Field(max_length=100)] = ""
    person: Number = None
    before: Number = None


@router.get("")
def show(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, wanted: Annotated[Wanted, Query()]
) -> Response:
    """Who did what and when, the newest first."""
    found = queries.events(session, project.id, wanted.action, wanted.person, wanted.before)
    return page(
        request,
        "trail/page.html",
        events=found[: queries.PAGE],
        following=found[queries.PAGE - 1].event.id if len(found) > queries.PAGE else None,
        wanted=wanted,
        actions=queries.actions(session, project.id),
        people=queries.people(session, project.id),
        nobody=queries.NOBODY,
        words=words,
        details=details,
    )


def words(action: str) -> str:
    """`round: started` for `round.started`."""
    return action.replace(".", ": ").replace("_", " ")


def details(given: dict[str, Any]) -> list[tuple[str, str]]:
    """What an event says, as names and texts."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in given.items()
        if value not in (None, "", [], {})
    ]
