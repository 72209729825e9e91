"""Model versions: the list, and for each its description, origin, derived models and measurements."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.charts import chart_csv, svg
from app.db import SessionDep
from app.errors import NotFound
from app.form_fields import Number, TypedDep
from app.limits import FormRoute
from app.lineage import origins, queries, views
from app.lineage.reward_cards import Card, cards, cards_csv
from app.models import ModelVersion, Project
from app.render import attachment, page, redirect
from app.rounds import service as rounds
from app.rounds.outcomes import of_rounds
from app.suites import queries as suite_queries

router = APIRouter(prefix="/projects/{project_slug}/models", route_class=FormRoute)


ADOPTIONS = 20  # shown in the list


def model_of_path(project: ProjectDep, session: SessionDep, model_id: int) -> ModelVersion:
    model = queries.model(session, project.id, model_id) if model_id < 2**63 else None
    if model is None:
        raise NotFound("The project has no such model.", "The Models page lists all models.")
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
    before: Number = None,
) -> Response:
    """List all models; or only those that learned from a person or a comparison, and the models derived from them."""
    learned = None
    if labeler is not None or comparison is not None:
        learned = origins.learners(session, project, labeler, comparison)
    found = queries.versions(session, project.id, before, learned.ids if learned else None)
    models = found[: queries.PAGE]
    of_page = {each.round.id: each.round for each in models if each.round}
    wanted = {"labeler": labeler, "comparison": comparison}
    return page(
        request,
        "lineage/list.html",
        models=models,
        learned=learned,
        following=models[-1].model.id if len(found) > len(models) else None,
        before=before,
        wanted={name: value for name, value in wanted.items() if value is not None},
        row_of={row.round.id: row for row in of_rounds(session, list(of_page.values()), slices=False).rows},
        had=queries.had_policies(session, project.id) | {project.base_model_id},
        adoptions=queries.adoptions(session, project.id, ADOPTIONS),
        is_busy=rounds.is_busy(session, project),
    )


@router.get("/{model_id}")
def show(request: Request, staff: StaffDep, project: ProjectDep, model: ModelDep, session: SessionDep) -> Response:
    chain, papers = queries.chain(session, model.id), views.papers(request.app.state.store, model)
    shown = _cards(session, project, model, chain, papers.report)
    return page(
        request,
        "lineage/model.html",
        model=model,
        chain=chain,
        children=queries.children(session, model.id),
        origin=origins.of(session, model),
        card=list(views.tables(model.card)) if model.card else [],
        readme=papers.readme,
        report=list(views.tables(papers.report)),
        cards=[(card, card.chart and svg(card.chart)) for card in shown],
        was_policy=model.id in queries.had_policies(session, project.id) | {project.base_model_id},
        is_busy=rounds.is_busy(session, project),
        suites=[each.suite for each in suite_queries.standing(session, project.id)] if model.role != "reward" else [],
    )


def _cards(
    session: Session, project: Project, model: ModelVersion, chain: list[queries.Origin], report: dict[str, Any]
) -> list[Card]:
    """Return the cards of a reward model that has a report; an empty list for other models."""
    if model.role != "reward" or not report:
        return []
    snapshot = chain[0].snapshot
    at = snapshot.created_at if snapshot else model.created_at
    return cards(report, views.ceiling(session, project.id, at))


@router.get("/{model_id}/files/{name}")
def model_file(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    model: ModelDep,
    session: SessionDep,
    name: Literal["cards.csv", "calibration.svg", "calibration.csv"],
) -> Response:
    """Download a reward model's cards as a table, or its calibration plot."""
    report = views.papers(request.app.state.store, model).report
    found = _cards(session, project, model, queries.chain(session, model.id), report)
    chart = next((card.chart for card in found if card.chart), None)
    if not found or (chart is None and name != "cards.csv"):
        raise NotFound(f"{model.name} has no such figures.", "The model's page shows the figures that exist.")
    if name == "cards.csv":
        content = cards_csv(found)
    else:
        assert chart is not None
        content = str(svg(chart, standalone=True)) if name.endswith(".svg") else chart_csv(chart)
    return attachment(f"{project.slug}-model-{model.id}-{name}", content)


@router.post("/{model_id}/adopt")
def adopt(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    model: ModelDep,
    session: SessionDep,
    typed: TypedDep,
) -> Response:
    """Make a model the project's policy, for the reason in the form. Then redirect to the round it names, or to the
    list."""
    rounds.adopt(session, request.app.state.store, project, model, operator, str(typed.get("reason", "")))
    number = typed.get("round", "")
    return redirect(f"/projects/{project.slug}/" + (f"rounds/{number}" if number.isdecimal() else "models"))
