"""A model version: what it is, what it came from, what was made of it, and what was measured on it."""

from fastapi import APIRouter, Request, Response

from app.accounts.access import StaffDep
from app.db import SessionDep
from app.errors import NotFound
from app.lineage import queries, views
from app.projects.access import ProjectDep
from app.render import page

router = APIRouter(prefix="/projects/{project_slug}/models")


@router.get("/{model_id}")
def show(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, model_id: int) -> Response:
    model = queries.model(session, project.id, model_id) if model_id < 2**63 else None
    if model is None:
        raise NotFound("The project has no such model.", "The pages of its rounds name those it has.")
    return page(
        request,
        "lineage/model.html",
        model=model,
        chain=queries.chain(session, model.id),
        children=queries.children(session, model.id),
        card=list(views.tables(model.card)) if model.card else [],
        papers=views.papers(request.app.state.store, model),
    )
