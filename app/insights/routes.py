"""The agreement page, its parts that load separately, and the same numbers as JSON for programs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from app.access.guards import ProjectDep, StaffDep
from app.cache import Cache, Computed
from app.db import SessionDep
from app.domain.agreement_table import Table
from app.errors import NotFound
from app.insights import queries, service, views
from app.limits import FormRoute
from app.models import Project
from app.models.user import USER_KINDS
from app.render import page

router = APIRouter(prefix="/projects/{project_slug}/agreement", route_class=FormRoute)

# With more judgments the table may take over a second, so the page shows live figures first and then loads it.
AT_ONCE = 2_000


def _kinds(
    kind: Annotated[list[Literal["person", "imported", "simulated", "ai_judge"]] | None, Query()] = None,
) -> tuple[str, ...]:
    return tuple(each for each in USER_KINDS if each in kind) if kind else service.PEOPLE


def _tables(request: Request) -> Cache[Table]:
    tables: Cache[Table] = request.app.state.agreement_tables
    return tables


KindsDep = Annotated[tuple[str, ...], Depends(_kinds)]
TablesDep = Annotated[Cache[Table], Depends(_tables)]
DimensionQuery = Annotated[str, Query(max_length=40)]
NumberQuery = Annotated[int, Query(ge=0, le=100_000)]


@router.get("")
def agreement(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    kinds: KindsDep,
    tables: TablesDep,
    wait: bool = False,
    dimension: DimensionQuery = "",
    number: NumberQuery = 0,
) -> Response:
    """Show live figures and the table. Large projects load the table afterwards unless `wait` is set."""
    live = service.live(session, project.id, kinds)
    if "application/json" in request.headers.get("accept", ""):
        computed = _computed(session, project, kinds, tables)
        names = queries.labelers(session, views.labelers_of(computed.value))
        return JSONResponse(views.as_json(live, computed, names, kinds))
    at_once = wait or live.figures.judgments <= AT_ONCE or tables.cached((project.id, kinds)) is not None
    shown = _view(session, project, kinds, tables, {dimension: number}) if at_once and live.figures.judgments else None
    return page(
        request,
        "insights/agreement.html",
        live=live,
        answers=views.answers(live, queries.scales(session, project.id).strengths),
        others=views.others(live, kinds),
        view=shown,
        **_shared(project, kinds),
    )


@router.get("/live")
def live(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, kinds: KindsDep) -> Response:
    """Show only the live figures."""
    found = service.live(session, project.id, kinds)
    return page(request, "insights/_live.html", live=found, **_shared(project, kinds))


@router.get("/table")
def table(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, kinds: KindsDep, tables: TablesDep
) -> Response:
    """Show everything below the live figures."""
    shown = _view(session, project, kinds, tables, {})
    return page(request, "insights/_table.html", view=shown, **_shared(project, kinds))


@router.get("/attention")
def attention(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, tables: TablesDep
) -> Response:
    """Show only the slices that need attention, for the project's start page."""
    shown = _view(session, project, service.PEOPLE, tables, {})
    shared = _shared(project, service.PEOPLE)
    return page(request, "insights/_attention.html", view=shown, at=f"{shared['here']}?wait=true", **shared)


@router.get("/section")
def section(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    kinds: KindsDep,
    tables: TablesDep,
    dimension: DimensionQuery,
    number: NumberQuery = 0,
) -> Response:
    """Show one page of the parts of one dimension."""
    shown = _view(session, project, kinds, tables, {dimension: number})
    found = views.section(shown, dimension)
    if found is None:
        raise NotFound(f"Agreement cannot be shown by “{dimension}”.", "Open the agreement page again.")
    return page(request, "insights/_section.html", view=shown, section=found, **_shared(project, kinds))


def _computed(session: Session, project: Project, kinds: tuple[str, ...], tables: Cache[Table]) -> Computed[Table]:
    return tables.get((project.id, kinds), lambda: service.table(session, project.id, kinds))


def _view(
    session: Session, project: Project, kinds: tuple[str, ...], tables: Cache[Table], pages: Mapping[str, int]
) -> views.View:
    computed = _computed(session, project, kinds, tables)
    names = queries.labelers(session, views.labelers_of(computed.value))
    return views.view(computed, names, project.review_threshold, pages)


def _shared(project: Project, kinds: tuple[str, ...]) -> dict[str, Any]:
    return {
        "here": f"/projects/{project.slug}/agreement",
        "kinds": kinds,
        "words": views.KINDS,
        "query": "&".join(f"kind={kind}" for kind in kinds),
        "is_default": kinds == service.PEOPLE,
        "least": views.LEAST,
        "page_size": views.PAGE,
        "chart": views.chart,
    }
