"""The Progress page, two rounds side by side, and both as files."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import ProjectDep, StaffDep
from app.charts import chart_csv, heat_svg, svg
from app.db import SessionDep
from app.domain.intervals import FEWEST
from app.domain.verdicts import LEAST_PROMPTS
from app.errors import NotFound
from app.limits import FormRoute
from app.models import Round
from app.progress import comparing, verdict, views
from app.render import attachment, page
from app.rounds import outcomes, queries

router = APIRouter(prefix="/projects/{project_slug}/progress", route_class=FormRoute)

File = Literal[
    "rounds.csv", "over-rounds.svg", "over-rounds.csv", "frontier.svg", "frontier.csv", "slices.svg", "slices.csv"
]
ByQuery = Annotated[views.By | None, Query()]
NumberQuery = Annotated[int | None, Query(ge=1, lt=2**31)]


@router.get("")
def progress(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, by: ByQuery = None
) -> Response:
    """Show the verdict on the newest policy, then all rounds. `by`: whose figures the slices show."""
    found = outcomes.progress(session, project, outcomes.SHOWN)
    chosen = by or views.measured_by(found)
    frontier = views.frontier(found.rows)
    return page(
        request,
        "progress/page.html",
        view=found,
        newest=verdict.newest(session, request.app.state.store, found),
        over_rounds=svg(views.over_rounds(found.rows)),
        heat=views.heat_map(found, chosen),
        by=chosen,
        frontier=frontier and svg(frontier),
        gains=views.gains(found.rows)[::-1],
        most=outcomes.SHOWN,
        shown_rounds=views.SHOWN_ROUNDS,
        shown_slices=views.SHOWN_SLICES,
        fewest=FEWEST,
        state_words=views.IS,
        least_prompts=LEAST_PROMPTS,
    )


@router.get("/files/{name}")
def progress_file(
    staff: StaffDep, project: ProjectDep, session: SessionDep, name: File, by: ByQuery = None
) -> Response:
    """Download a chart as SVG, its numbers, or a table as CSV; the heat map with all rounds and slices."""
    found = outcomes.progress(session, project, slices=name.startswith("slices"))
    frontier = views.frontier(found.rows)
    if name.startswith("frontier") and frontier is None:
        raise NotFound("No round has measured the frontier yet.", "It appears after the next round's evaluation.")
    match name:
        case "over-rounds.svg":
            content = str(svg(views.over_rounds(found.rows), standalone=True))
        case "over-rounds.csv":
            content = chart_csv(views.over_rounds(found.rows))
        case "rounds.csv":
            content = views.rounds_csv(found)
        case "frontier.svg":
            assert frontier is not None
            content = str(svg(frontier, standalone=True))
        case "frontier.csv":
            assert frontier is not None
            content = chart_csv(frontier)
        case "slices.svg":
            content = str(heat_svg(views.heat_map(found, by or views.measured_by(found), everything=True)))
        case "slices.csv":
            content = views.slices_csv(found)
    return attachment(f"{project.slug}-{name}", content)


@router.get("/compare")
def compare(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    first: NumberQuery = None,
    second: NumberQuery = None,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Response:
    """Show two rounds side by side; without numbers, the newest two."""
    rounds = queries.rounds(session, project.id)
    chosen = _chosen(session, rounds, first, second)
    return page(
        request,
        "progress/compare.html",
        rounds=rounds,
        view=comparing.compare(session, *chosen, offset) if chosen else None,
        offset=offset,
        step=comparing.ANSWERS,
    )


@router.get("/compare.csv")
def compare_file(
    staff: StaffDep, project: ProjectDep, session: SessionDep, first: NumberQuery = None, second: NumberQuery = None
) -> Response:
    """Download settings, data and figures of both rounds."""
    chosen = _chosen(session, queries.rounds(session, project.id), first, second)
    if chosen is None:
        raise NotFound("The project has fewer than two rounds.", "You can compare rounds after the second round.")
    names = f"{chosen[0].round.number}-{chosen[1].round.number}"
    content = comparing.compared_csv(comparing.compare(session, *chosen, 0))
    return attachment(f"{project.slug}-rounds-{names}.csv", content)


def _chosen(
    session: Session, rounds: list[Round], first: int | None, second: int | None
) -> tuple[outcomes.RoundRow, outcomes.RoundRow] | None:
    """Return the rounds with these numbers, by default the newest two; None if there are fewer than two rounds.

    Args:
        rounds: of the project, newest first.

    Raises:
        NotFound: the project has no round with that number.
    """
    if len(rounds) < 2 and first is None and second is None:
        return None
    by_number = {round_.number: round_ for round_ in rounds[::-1]}
    newest = [0, 0, *by_number][-2:]
    numbers = first or newest[0], second or newest[1]
    for number in numbers:
        if number not in by_number:
            raise NotFound(f"The project has no round {number}.", "The list of rounds is on the Rounds page.")
    # One by one: what is said of all rounds together is no part of the comparison.
    one, other = (outcomes.of_rounds(session, [by_number[number]]).rows[0] for number in numbers)
    return one, other
