"""The page of automatic rounds: the rule, its state, and a second operator's approval."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.automatic import service
from app.automatic.forms import RuleForm
from app.automatic.service import FEWEST_JUDGMENTS, Rule
from app.db import SessionDep
from app.errors import Conflict, PrefloopError
from app.limits import FormRoute
from app.models import Project, User
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/automatic-rounds", route_class=FormRoute)


@router.get("")
def show(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    return _page(request, session, project, staff)


@router.post("")
def set_rule(
    operator: OperatorDep, project: ProjectDep, session: SessionDep, form: Annotated[RuleForm, Form()]
) -> Response:
    agreement = None if form.agreement is None else form.agreement / 100
    rule = Rule(**form.model_dump(exclude={"agreement"}), agreement=agreement, set_by=operator.id)
    service.set_rule(session, project, operator, rule)
    return redirect(_address(project))


@router.post("/off")
def switch_off(operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    service.set_rule(session, project, operator, None)
    return redirect(_address(project))


@router.post("/approve")
def approve(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    try:
        with session.begin_nested():  # a refused round leaves nothing behind
            round_ = service.approve(session, request.app.state.store, project, operator)
    except Conflict as problem:
        return _page(request, session, project, operator, problem)
    return redirect(f"/projects/{project.slug}/rounds/{round_.number}")


def _address(project: Project) -> str:
    return f"/projects/{project.slug}/automatic-rounds"


def _page(
    request: Request, session: Session, project: Project, staff: User, problem: PrefloopError | None = None
) -> Response:
    return page(
        request,
        "automatic/page.html",
        status=problem.status if problem else 200,
        standing=service.standing(session, request.app.state.store, project),
        me=staff,
        fewest=FEWEST_JUDGMENTS,
        problem=problem,
    )
