"""AI judges in the browser: the list, a judge's page, adding, testing, judging, the admission test, and a download."""

import pathlib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app import scratch
from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.charts import svg
from app.db import SessionDep, unhurried
from app.domain.alternative_annotator import EPSILON, Q
from app.errors import NotFound, PrefloopError
from app.form_fields import TypedDep, not_accepted
from app.judges import queries, service, views
from app.judges.forms import MAX_NAME, MOST, WHAT, AdmissionForm, JudgeForm, RunForm, SettingsForm
from app.limits import FormRoute
from app.models import Judge, Project
from app.render import page, redirect
from app.rounds import service as rounds

router = APIRouter(prefix="/projects/{project_slug}/judges", route_class=FormRoute)
FIRST = {name: field.default for name, field in SettingsForm.model_fields.items()}


def judge_of_path(project: ProjectDep, session: SessionDep, judge_id: int) -> Judge:
    judge = queries.by_id(session, project.id, judge_id) if 0 <= judge_id < 2**63 else None
    if judge is None:
        raise NotFound("The project has no such judge.", "The Judges page lists those it has.")
    return judge


JudgeDep = Annotated[Judge, Depends(judge_of_path)]


@router.get("")
def list_judges(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    return page(request, "judges/list.html", view=views.overview(session, project))


@router.get("/new")
def new_judge(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    return _new_page(request, FIRST | {"name": "", "url": "", "model": ""})


@router.post("")
def add(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep, typed: TypedDep) -> Response:
    """Adds a judge and tests its endpoint."""
    try:
        form = JudgeForm.model_validate(typed)
        judge = service.add(session, project, operator, form, request.app.state.settings.signing_key)
        service.start_test(session, judge, operator)
    except ValidationError as error:
        reasons = _reasons(error)
        return _new_page(request, FIRST | _without_key(typed), reasons, not_accepted(reasons))
    except PrefloopError as problem:
        return _new_page(request, FIRST | _without_key(typed), problem=problem)
    return redirect(_address(project, judge))


@router.get("/{judge_id}")
def show(request: Request, staff: StaffDep, project: ProjectDep, judge: JudgeDep, session: SessionDep) -> Response:
    return _show(request, session, project, judge)


@router.post("/{judge_id}")
def change(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    judge: JudgeDep,
    session: SessionDep,
    typed: TypedDep,
) -> Response:
    """Changes key, prices and limits."""
    try:
        form = SettingsForm.model_validate(typed)
    except ValidationError as error:
        reasons = _reasons(error)
        problem = not_accepted(reasons)
        return _show(request, session, project, judge, _without_key(typed), reasons, problem)
    service.change(session, judge, operator, form, request.app.state.settings.signing_key)
    return redirect(_address(project, judge))


@router.post("/{judge_id}/test")
def test(
    request: Request, operator: OperatorDep, project: ProjectDep, judge: JudgeDep, session: SessionDep
) -> Response:
    """Asks its endpoint about one made-up comparison."""
    return _try(request, session, project, judge, lambda: service.start_test(session, judge, operator))


@router.post("/{judge_id}/runs")
def start(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    judge: JudgeDep,
    session: SessionDep,
    form: Annotated[RunForm, Form()],
) -> Response:
    """Starts to judge comparisons."""
    return _try(request, session, project, judge, lambda: service.start(session, judge, operator, form))


@router.post("/{judge_id}/runs/{run_id}/cancel")
def cancel(operator: OperatorDep, project: ProjectDep, judge: JudgeDep, session: SessionDep, run_id: int) -> Response:
    run = queries.run_of(session, project.id, run_id) if 0 <= run_id < 2**63 else None
    if run is None or run.spec.get("judge") != judge.id:
        raise NotFound("The judge has no such run.", "Its page lists those it has.")
    rounds.cancel_run(session, run, operator)
    return redirect(_address(project, judge))


@router.post("/{judge_id}/admission")
def admit(
    request: Request, operator: OperatorDep, project: ProjectDep, judge: JudgeDep, session: SessionDep, typed: TypedDep
) -> Response:
    """Tests it beside people: the alternative annotator test."""
    try:
        form = AdmissionForm.model_validate(typed)
    except ValidationError as error:
        reasons = _reasons(error)
        return _show(request, session, project, judge, None, reasons, not_accepted(reasons))
    return _try(request, session, project, judge, lambda: service.admit(session, judge, operator, form))


@router.post("/{judge_id}/off")
def switch_off(operator: OperatorDep, project: ProjectDep, judge: JudgeDep, session: SessionDep) -> Response:
    service.switch(session, judge, operator, on=False)
    if run := service.under_way(session, judge):  # it would go on asking, and paying
        rounds.cancel_run(session, run, operator)
    return redirect(_address(project, judge))


@router.post("/{judge_id}/on")
def switch_on(operator: OperatorDep, project: ProjectDep, judge: JudgeDep, session: SessionDep) -> Response:
    service.switch(session, judge, operator, on=True)
    return redirect(_address(project, judge))


@router.get("/{judge_id}/judgments.jsonl", dependencies=[Depends(unhurried)])
def judgments_file(staff: StaffDep, project: ProjectDep, judge: JudgeDep, session: SessionDep) -> Response:
    """All that it said, marked as an AI's."""

    def write(path: pathlib.Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(views.export_lines(session, judge))

    return scratch.download(f"{project.slug}-judge-{judge.id}.jsonl", "application/jsonl", write)


def _try(request: Request, session: Session, project: Project, judge: Judge, action: Any) -> Response:
    """Back to the judge's page, with the problem on it if there is one."""
    try:
        with session.begin_nested():  # nothing of what is refused stays
            action()
    except PrefloopError as problem:
        if "application/json" in request.headers.get("accept", ""):
            raise
        return _show(request, session, project, judge, problem=problem)
    return redirect(_address(project, judge))


def _without_key(typed: dict[str, str]) -> dict[str, Any]:
    """What was typed, without the key: no page shows one."""
    return {name: value for name, value in typed.items() if name != "key"}


def _reasons(error: ValidationError) -> dict[str, str]:
    """Without what was entered, which may be a key; of the form as a whole under `key`."""
    return {str(each["loc"][0]) if each["loc"] else "key": each["msg"] for each in error.errors()}


def _address(project: Project, judge: Judge) -> str:
    return f"/projects/{project.slug}/judges/{judge.id}"


def _new_page(
    request: Request,
    given: dict[str, Any],
    reasons: dict[str, str] | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    return page(
        request,
        "judges/new.html",
        status=problem.status if problem else 200,
        given=given,
        reasons=reasons or {},
        problem=problem,
        max_name=MAX_NAME,
    )


def _show(
    request: Request,
    session: Session,
    project: Project,
    judge: Judge,
    typed: dict[str, Any] | None = None,
    reasons: dict[str, str] | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    view = views.judge_page(session, project, judge)
    chart = view.chart
    stored = {name: getattr(judge, name) for name in SettingsForm.model_fields if hasattr(judge, name)}
    return page(
        request,
        "judges/page.html",
        status=problem.status if problem else 200,
        view=view,
        curves=svg(chart) if chart else None,
        given=FIRST | stored | (typed or {}),
        reasons=reasons or {},
        problem=problem,
        what=WHAT,
        most=MOST,
        epsilon=EPSILON,
        q=Q,
    )
