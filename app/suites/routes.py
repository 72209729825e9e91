"""Suites in the browser: the list with the alignment tax, a suite's page, adding, versions, the gate, and downloads."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.artifacts import read_content
from app.charts import svg
from app.db import SessionDep
from app.domain.cases import CHECKS, Case
from app.domain.instructions import INSTRUCTIONS
from app.domain.suites import BOUNDS
from app.errors import InvalidInput, NotFound, PrefloopError
from app.form_fields import TypedDep, not_accepted, reasons_of
from app.limits import FORM, FormRoute
from app.models import Project, Suite
from app.render import page, redirect
from app.rounds import service as rounds
from app.suites import queries, service, views
from app.suites.forms import MAX_NAME, DemandForm, GateForm, NewSuiteForm, StarterForm
from app.suites.reading import MOST_BYTES, MOST_CASES, FileRefused, read_cases


class SuiteRoute(FormRoute):
    """Takes files, no larger than a suite may be."""

    takes_files = True
    most = MOST_BYTES + FORM


router = APIRouter(prefix="/projects/{project_slug}/suites", route_class=SuiteRoute)
RoundNumber = Annotated[int | None, Query(alias="round", ge=1, lt=2**31)]


def suite_of_path(project: ProjectDep, session: SessionDep, suite_id: int) -> Suite:
    suite = queries.by_id(session, project.id, suite_id) if 0 <= suite_id < 2**63 else None
    if suite is None:
        raise NotFound("The project has no such suite.", "The Suites page lists those it has.")
    return suite


SuiteDep = Annotated[Suite, Depends(suite_of_path)]


async def _sent(request: Request) -> FormData:
    # Read by now, within the limits of app.limits.
    return await request.form()


SentDep = Annotated[FormData, Depends(_sent)]


@router.get("")
def list_suites(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    """What the newest policies lost and gained, suite by suite."""
    return page(request, "suites/list.html", view=views.overview(session, project), starters=service.starters())


@router.get("/new")
def new_suite(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    return _new_page(request)


@router.post("")
def add(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep, sent: SentDep) -> Response:
    """Adds a suite from a file; a file that is refused comes back with every faulty line."""
    typed = {name: value for name, value in sent.items() if isinstance(value, str)}
    try:
        form = NewSuiteForm.model_validate(typed)
        file_name, cases = _cases(sent)
        with session.begin_nested():  # no suite without a version stays where the disk was full
            suite = service.add(
                session, request.app.state.store, project, operator, form.name or Path(file_name).stem, cases
            )
    except ValidationError as error:
        problem: PrefloopError = not_accepted(reasons_of(error))
    except PrefloopError as error:
        problem = error
    else:
        return redirect(_address(project, suite))
    if "application/json" in request.headers.get("accept", ""):
        raise problem
    return _new_page(request, typed.get("name", ""), problem)


@router.post("/starters")
def add_starters(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[StarterForm, Form()],
) -> Response:
    """Adds suites that come with the program."""
    service.add_starters(session, request.app.state.store, project, operator, form.names)
    return redirect(f"/projects/{project.slug}/suites")


@router.post("/red-team")
def grow_red_team(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    """Makes the attempts that worked a suite, or its next version."""
    suite = service.grow_red_team(session, request.app.state.store, project, operator)
    return redirect(_address(project, suite))


@router.post("/run")
def run_on_demand(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[DemandForm, Form()],
) -> Response:
    """A policy takes one suite, or all of them, outside rounds."""
    model = queries.policy(session, project.id, form.model)
    suite = queries.by_id(session, project.id, form.suite) if form.suite is not None else None
    if model is None or (form.suite is not None and suite is None):
        raise NotFound("The project has no such model or suite.", "Choose from those that the page lists.")
    only = [suite.id] if suite else []
    rounds.take_suites(session, request.app.state.store, project, operator, model, only)
    return redirect(_address(project, suite) if suite else f"/projects/{project.slug}/suites")


@router.post("/run/{demand_id}/cancel")
def cancel_on_demand(operator: OperatorDep, project: ProjectDep, session: SessionDep, demand_id: int) -> Response:
    run = queries.demand_run(session, project.id, demand_id) if 0 <= demand_id < 2**63 else None
    if run is None:
        raise NotFound("The project has no such run of suites.", "The Suites page shows the newest one.")
    rounds.cancel_run(session, run, operator)
    return redirect(f"/projects/{project.slug}/suites")


@router.get("/{suite_id}")
def show(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    suite: SuiteDep,
    session: SessionDep,
    number: RoundNumber = None,
) -> Response:
    return _show(request, session, project, suite, number)


@router.post("/{suite_id}")
def set_gate(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    suite: SuiteDep,
    session: SessionDep,
    typed: TypedDep,
) -> Response:
    """Sets how much a policy may lose on this suite."""
    try:
        service.set_gate(session, suite, operator, GateForm.model_validate(typed))
    except ValidationError as error:
        reasons = reasons_of(error)
        return _show(
            request, session, project, suite, None, typed=typed, reasons=reasons, problem=not_accepted(reasons)
        )
    return redirect(_address(project, suite))


@router.post("/{suite_id}/versions")
def add_version(
    request: Request, operator: OperatorDep, project: ProjectDep, suite: SuiteDep, session: SessionDep, sent: SentDep
) -> Response:
    try:
        with session.begin_nested():  # nothing of a version that is refused stays
            service.add_version(session, request.app.state.store, suite, operator, _cases(sent)[1])
    except PrefloopError as problem:
        if "application/json" in request.headers.get("accept", ""):
            raise
        return _show(request, session, project, suite, None, problem=problem)
    return redirect(_address(project, suite))


@router.post("/{suite_id}/retire")
def retire(operator: OperatorDep, project: ProjectDep, suite: SuiteDep, session: SessionDep) -> Response:
    service.retire(session, suite, operator)
    return redirect(f"/projects/{project.slug}/suites")


@router.post("/{suite_id}/bring-back")
def bring_back(operator: OperatorDep, project: ProjectDep, suite: SuiteDep, session: SessionDep) -> Response:
    service.bring_back(session, suite, operator)
    return redirect(_address(project, suite))


@router.get("/{suite_id}/cases.jsonl")
def cases_file(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    suite: SuiteDep,
    session: SessionDep,
    number: Annotated[int | None, Query(alias="version", ge=1, lt=2**31)] = None,
) -> Response:
    """A version's cases, as they can be added again; the newest without a number."""
    version = service.version_of(session, suite, number)
    content = read_content(request.app.state.store.resolve(version.location))
    return _file(content, f"{project.slug}-suite-{suite.id}-version-{version.number}.jsonl")


@router.get("/{suite_id}/answers.jsonl")
def answers_file(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    suite: SuiteDep,
    session: SessionDep,
    number: RoundNumber = None,
    run: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """What both policies said to each case, in a round; the newest without a number. run: a policy's, on demand."""
    if run is not None:
        taken = next(
            (each for each in queries.on_demand(session, suite.id, views.MOST_ROUNDS) if each.run.id == run), None
        )
        if taken is None:
            raise NotFound("No such run has taken this suite.", "The suite's page lists those that have.")
        content = request.app.state.store.resolve(service.answers_of(run, taken.version.id)).read_bytes()
        return _file(content, f"{project.slug}-suite-{suite.id}-run-{run}.jsonl")
    measured = queries.of_suite(session, suite.id, views.MOST_ROUNDS)
    found = next((each for each in measured if number in (None, each.round.number)), None)
    if found is None:
        raise NotFound("No such round has run this suite.", "The suite's page lists the rounds that have.")
    content = request.app.state.store.resolve(service.answers_of(found.run_id, found.version.id)).read_bytes()
    return _file(content, f"{project.slug}-suite-{suite.id}-round-{found.round.number}.jsonl")


def _file(content: bytes, name: str) -> Response:
    return Response(
        content, media_type="application/jsonl", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


def _cases(sent: FormData) -> tuple[str, list[Case]]:
    """The name of the file that was sent, and its cases."""
    uploads = [value for value in sent.getlist("file") if isinstance(value, UploadFile) and value.filename]
    if not uploads:
        raise InvalidInput("No file was chosen.", "Choose a JSONL file of cases.")
    return uploads[0].filename or "", read_cases(uploads[0].file.read())


def _address(project: Project, suite: Suite) -> str:
    return f"/projects/{project.slug}/suites/{suite.id}"


def _new_page(request: Request, name: str = "", problem: PrefloopError | None = None) -> Response:
    return page(
        request,
        "suites/new.html",
        status=problem.status if problem else 200,
        name=name,
        max_name=MAX_NAME,
        checks=CHECKS,
        instructions=INSTRUCTIONS,
        most_cases=MOST_CASES,
        problem=problem,
        lines=problem.problems if isinstance(problem, FileRefused) else [],
    )


def _show(
    request: Request,
    session: Session,
    project: Project,
    suite: Suite,
    number: int | None,
    typed: dict[str, Any] | None = None,
    reasons: dict[str, str] | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    view = views.suite_page(session, request.app.state.store, project, suite, number)
    if view is None:
        raise NotFound(f"Round {number} has not run this suite.", "The suite's page lists the rounds that have.")
    gate = typed or {
        "largest_loss": "" if suite.largest_loss is None else f"{suite.largest_loss * 100:.12g}",
        "bound": suite.bound,
    }
    return page(
        request,
        "suites/page.html",
        status=problem.status if problem else 200,
        view=view,
        curves=svg(view.chart) if len(view.rounds) > 1 else None,
        gate=gate,
        bounds=BOUNDS,
        reasons=reasons or {},
        problem=problem,
        lines=problem.problems if isinstance(problem, FileRefused) else [],
    )
