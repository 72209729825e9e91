"""The monitors' page, and the page of one monitor."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access.guards import ProjectDep, StaffDep
from app.charts import svg
from app.db import SessionDep
from app.domain.monitors import ALL, by_name
from app.errors import NotFound
from app.limits import FormRoute
from app.monitors import views
from app.render import attachment, page

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
    found = by_name(monitor_name)
    if found is None:
        raise NotFound(f"There is no monitor “{monitor_name}”.", "The list of monitors names those that there are.")
    rounds = views.rounds(session, project)
    shown = [each.round for each in rounds if number is None or each.round.number == number]
    if number and not shown:
        raise NotFound(f"The monitors show no round {number}.", "The list of monitors names the rounds that they show.")
    round_ = shown[0] if shown else None
    examples = views.worst(session, round_, found) if round_ else []
    return page(
        request,
        "monitors/page.html",
        monitor=found,
        rounds=rounds,
        round=round_,
        examples=examples,
        chart=(chart := views.chart(rounds, found)) and svg(chart),
        refusals=found.figure == "refusals" and (refusals := views.refusals_chart(rounds)) and svg(refusals),
    )
