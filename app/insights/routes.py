"""The agreement page, and the same numbers as JSON for programs."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.accounts.access import StaffDep
from app.db import SessionDep
from app.insights import queries, service
from app.projects.access import ProjectDep
from app.render import page

router = APIRouter(prefix="/projects/{project_slug}/agreement")


@router.get("")
def agreement(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    labelers: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> Response:
    """Agreement as a whole and by slice; `labelers` is the page of the labelers' table."""
    found = service.agreement(session, project.id)
    if "application/json" in request.headers.get("accept", ""):
        by_slice = {f"{name}={value}": asdict(part) for (name, value), part in found.by_slice.items()}
        return JSONResponse(asdict(found.whole) | {"slices": by_slice, "preferences": found.preferences})
    return page(
        request,
        "insights/agreement.html",
        whole=found.whole,
        slices=[(name, value, part) for (name, value), part in found.by_slice.items()],
        preferences=found.preferences,
        labelers=queries.labelers(session, project.id, labelers),
        labelers_page=labelers,
        labelers_pages=queries.PAGE,
    )
