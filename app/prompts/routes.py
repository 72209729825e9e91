"""Browsing prompts, and one prompt with its completions and comparisons."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access.guards import AdminDep, ProjectDep
from app.db import SessionDep
from app.errors import NotFound
from app.limits import FormRoute
from app.models.prompt import DIFFICULTIES, SPLITS, WITHDRAWN
from app.prompts import queries
from app.prompts.forms import PromptFilter
from app.render import page

router = APIRouter(prefix="/projects/{project_slug}/prompts", route_class=FormRoute)


@router.get("")
def listing(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: Annotated[PromptFilter, Query()],
) -> Response:
    return page(
        request,
        "prompts/list.html",
        wanted=wanted,
        listing=queries.listing(session, project, wanted),
        domains=queries.domains(session, project),
        splits=(*SPLITS, WITHDRAWN),
        difficulties=DIFFICULTIES,
    )


@router.get("/{prompt_id}")
def detail(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, prompt_id: int) -> Response:
    prompt = queries.in_project(session, project, prompt_id)
    if prompt is None:
        raise NotFound(f"This project has no prompt {prompt_id}.", "Go back to the list of prompts.")
    completions = queries.completions_of(session, prompt)
    return page(
        request,
        "prompts/detail.html",
        prompt=prompt,
        completions=completions,
        comparisons=queries.comparisons_of(session, prompt),
        shown=queries.SHOWN,
    )
