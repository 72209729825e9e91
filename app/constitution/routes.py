"""The constitution in the browser: its principles, starting a run, what a run made of each answer, and a download."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app import scratch
from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.constitution import queries, service, views
from app.constitution.forms import LONGEST, MOST, StartForm
from app.db import SessionDep, unhurried
from app.errors import NotFound, PrefloopError
from app.form_fields import TypedDep, not_accepted
from app.limits import FormRoute
from app.models import Project, Run
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/constitution", route_class=FormRoute)
FIRST: dict[str, Any] = {"count": 100, "longest": 4000, "candidates": True, "domain": "", "seed": ""}


def run_of_path(project: ProjectDep, session: SessionDep, constitution_id: int) -> Run:
    run = queries.run_of(session, project.id, constitution_id) if 0 <= constitution_id < 2**63 else None
    if run is None:
        raise NotFound("The project has no such constitution run.", "The Constitution page lists those it has.")
    return run


RunDep = Annotated[Run, Depends(run_of_path)]


@router.get("")
def show(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    return _page(request, session, project)


@router.post("")
def start(
    request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep, typed: TypedDep
) -> Response:
    """Starts a run over the current policy's newest answers."""
    try:
        form = StartForm.model_validate(typed)
        with session.begin_nested():  # nothing of what is refused stays
            run = service.start(session, project, operator, form)
    except ValidationError as error:
        # The form's only rule about several fields is that a revision must become something.
        reasons = {str(each["loc"][0]) if each["loc"] else "becomes": each["msg"] for each in error.errors()}
        return _page(request, session, project, typed, reasons, not_accepted(reasons))
    except PrefloopError as problem:
        if "application/json" in request.headers.get("accept", ""):
            raise
        return _page(request, session, project, typed, problem=problem)
    return redirect(_address(project, run))


@router.get("/{constitution_id}")
def show_run(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    run: RunDep,
    session: SessionDep,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    return page(request, "constitution/run.html", view=views.run_page(session, run, after), after=after)


@router.post("/{constitution_id}/cancel")
def cancel(operator: OperatorDep, project: ProjectDep, run: RunDep, session: SessionDep) -> Response:
    service.cancel(session, run, operator)
    return redirect(_address(project, run))


@router.post("/{constitution_id}/resume")
def resume(operator: OperatorDep, project: ProjectDep, run: RunDep, session: SessionDep) -> Response:
    """Continues a run that failed or was cancelled."""
    service.resume(session, run, operator)
    return redirect(_address(project, run))


@router.get("/{constitution_id}/revisions.jsonl", dependencies=[Depends(unhurried)])
def revisions_file(staff: StaffDep, project: ProjectDep, run: RunDep, session: SessionDep) -> Response:
    """All that the run stored, each line marked as an AI's."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(views.export_lines(session, run))

    return scratch.download(f"{project.slug}-constitution-{run.id}.jsonl", "application/jsonl", write)


def _address(project: Project, run: Run) -> str:
    return f"/projects/{project.slug}/constitution/{run.id}"


def _page(
    request: Request,
    session: Session,
    project: Project,
    typed: dict[str, Any] | None = None,
    reasons: dict[str, str] | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    return page(
        request,
        "constitution/page.html",
        status=problem.status if problem else 200,
        view=views.overview(session, project),
        given=FIRST if typed is None else typed,
        reasons=reasons or {},
        problem=problem,
        most=MOST,
        longest=LONGEST,
    )
