"""The monitors' page, and the page of one monitor."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access.guards import ProjectDep, StaffDep
from app.charts import svg
from app.db import SessionDep
from app.domain.monitors import ALL, by_name
from app.errors import NotFound, PrefloopError
from app.form_fields import TypedDep, not_accepted, reasons_of
from app.limits import FormRoute
from app.models import Project
from app.monitors import service, views
from app.monitors.forms import MAX_NOTE, VERDICTS, ReviewForm
from app.render import attachment, page, redirect

router = APIRouter(prefix="/projects/{project_slug}/monitors", route_class=FormRoute)


@router.get("")
def monitors(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    """All monitors by round."""
    return page(request, "monitors/list.html", monitors=ALL, rounds=views.rounds(session, project))


@router.get("/figures.csv")
def figures(staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    """What each monitor measured of each round."""
    return attachment(f"{project.slug}-monitors.csv", views.figures_csv(views.rounds(session, project)))


@router.get("/{monitor_name}")
def monitor(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    monitor_name: str,
    number: Annotated[int | None, Query(alias="round", ge=1, lt=2**31)] = None,
) -> Response:
    """One monitor: what it counts, what it said of each round, and the worst examples of one round."""
    return _page(request, session, project, monitor_name, number)


@router.post("/{monitor_name}/reviews")
def review(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, monitor_name: str, typed: TypedDep
) -> Response:
    """Say whether people want what the monitor found in a round. A refused form comes back as it was typed."""
    try:
        form = ReviewForm.model_validate(typed)
    except ValidationError as error:
        number = typed.get("round", "")
        known = int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else None
        return _page(request, session, project, monitor_name, known, typed, not_accepted(reasons_of(error)))
    watched = next((each for each in views.rounds(session, project) if each.round.number == form.round), None)
    if watched is None:
        raise _no_round(form.round)
    try:
        service.review(session, watched.round, monitor_name, watched.looks, staff, form)
    except PrefloopError as problem:
        return _page(request, session, project, monitor_name, form.round, typed, problem)
    return redirect(f"/projects/{project.slug}/monitors/{monitor_name}?round={form.round}#review")


def _page(
    request: Request,
    session: Session,
    project: Project,
    name: str,
    number: int | None,
    typed: Mapping[str, str] = MappingProxyType({}),
    problem: PrefloopError | None = None,
) -> Response:
    """The page of a monitor; after a refused review, with the problem and what was typed."""
    found = by_name(name)
    if found is None:
        raise NotFound(f"There is no monitor “{name}”.", "The list of monitors names those that there are.")
    rounds = views.rounds(session, project)
    shown = [each.round for each in rounds if number is None or each.round.number == number]
    if number and not shown:
        raise _no_round(number)
    round_ = shown[0] if shown else None
    examples = views.worst(session, round_, found) if round_ else []
    return page(
        request,
        "monitors/page.html",
        status=problem.status if problem else 200,
        monitor=found,
        rounds=rounds,
        round=round_,
        examples=examples,
        chart=(chart := views.chart(rounds, found)) and svg(chart),
        refusals=found.figure == "refusals" and (refusals := views.refusals_chart(rounds)) and svg(refusals),
        verdicts=VERDICTS,
        most=MAX_NOTE,
        typed=typed,
        problem=problem,
    )


def _no_round(number: int) -> NotFound:
    return NotFound(f"The monitors show no round {number}.", "The list of monitors names the rounds that they show.")
