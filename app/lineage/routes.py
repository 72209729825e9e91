"""Model versions: the list, and of each what it is, what it came from, what was made of it, what was measured on it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.db import SessionDep
from app.errors import NotFound
from app.limits import FormRoute
from app.lineage import origins, queries, views
from app.models import ModelVersion
from app.render import page, redirect
from app.rounds import service as rounds
from app.typed import Number, TypedDep

router = APIRouter(prefix="/projects/{project_slug}/models", route_class=FormRoute)


ADOPTIONS = 20  # that the list shows


def model_of_path(project: ProjectDep, session: SessionDep, model_id: int) -> ModelVersion:
    model = queries.model(session, project.id, model_id) if model_id < 2**63 else None
    if model is None:
        raise NotFound("The project has no such model.", "The Models page lists those it has.")
    return model


ModelDep = Annotated[ModelVersion, Depends(model_of_path)]


@router.get("")
def list_models(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    labeler: Number = None,
    comparison: Number = None,
) -> Response:
    """All models; or those that learned from what a person said, or from a comparison, and those made from these."""
    models, learned = queries.policies(session, project.id), None
    if labeler is not None or comparison is not None:
        learned = origins.learners(session, project, labeler, comparison)
        models = [row for row in models if row[0].id in learned.ids]
    return page(
        request,
        "lineage/list.html",
        models=models,
        learned=learned,
        had=queries.had_policies(session, project.id) | {project.base_model_id},
        adoptions=queries.adoptions(session, project.id, ADOPTIONS),
        is_busy=rounds.is_busy(session, project),
    )


@router.get("/{model_id}")
def show(request: Request, staff: StaffDep, project: ProjectDep, model: ModelDep, session: SessionDep) -> Response:
    return page(
        request,
        "lineage/model.html",
        model=model,
        chain=queries.chain(session, model.id),
        children=queries.children(session, model.id),
        origin=origins.of(session, model),
        card=list(views.tables(model.card)) if model.card else [],
        papers=views.papers(request.app.state.store, model),
        was_policy=model.id in queries.had_policies(session, project.id) | {project.base_model_id},
        is_busy=rounds.is_busy(session, project),
    )


@router.post("/{model_id}/adopt")
def adopt(
    operator: OperatorDep, project: ProjectDep, model: ModelDep, session: SessionDep, typed: TypedDep
) -> Response:
    """Makes a model the project's policy, for the reason that the form gives; then back to the round that it names, or
    to the list."""
    rounds.adopt(session, project, model, operator, str(typed.get("reason", "")))
    number = typed.get("round", "")
    return redirect(f"/projects/{project.slug}/" + (f"rounds/{number}" if number.isdecimal() else "models"))
