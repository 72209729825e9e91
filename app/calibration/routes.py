"""Calibration items: how people do on each item, and which items are in use."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, ProjectDep
from app.calibration import queries, views
from app.db import SessionDep
from app.documents import LabelingSettings
from app.errors import PrefloopError
from app.labeling import calibration, recusal
from app.limits import FormRoute
from app.models import Project, User
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/calibration", route_class=FormRoute)
PAGE = 50

PageNumber = Annotated[int, Query(alias="page", ge=0, le=100_000)]


@router.get("")
def show(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    number: PageNumber = 0,
    changed: int | None = None,
) -> Response:
    return _page(request, session, project, admin, number, changed=changed)


@router.post("/look")
def look(admin: AdminDep, project: ProjectDep, session: SessionDep, number: PageNumber = 0) -> Response:
    """Show the known answers of a page, and recuse the viewer from its items."""
    found = queries.items(session, project.id, admin, PAGE, number * PAGE)
    for item_id in sorted(item.id for item in found if item.is_hidden):  # locked one after the other, in one order
        recusal.recuse(session, item_id, admin.id)
    return redirect(_url(project, number))


@router.post("/{item_id}/retire")
def retire(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, item_id: int, number: PageNumber = 0
) -> Response:
    return _change(request, session, project, admin, number, item_id, calibration.retire)


@router.post("/{item_id}/bring-back")
def bring_back(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, item_id: int, number: PageNumber = 0
) -> Response:
    return _change(request, session, project, admin, number, item_id, calibration.bring_back)


@router.post("/{item_id}/answer")
def correct(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    item_id: int,
    gold: Annotated[int, Form(ge=-4, le=4)],
    number: PageNumber = 0,
) -> Response:
    def decide(session: Session, project: Project, item_id: int, actor: User) -> None:
        calibration.correct(session, project, item_id, gold, actor)

    return _change(request, session, project, admin, number, item_id, decide)


def _change(
    request: Request,
    session: Session,
    project: Project,
    admin: User,
    number: int,
    item_id: int,
    decide: Callable[[Session, Project, int, User], None],
) -> Response:
    try:
        decide(session, project, item_id, admin)
    except PrefloopError as error:
        return _page(request, session, project, admin, number, error=error)
    return redirect(f"{_url(project, number)}&changed={item_id}")


def _url(project: Project, number: int) -> str:
    return f"/projects/{project.slug}/calibration?page={number}"


def _page(
    request: Request,
    session: Session,
    project: Project,
    admin: User,
    number: int,
    *,
    changed: int | None = None,
    error: PrefloopError | None = None,
) -> Response:
    # One more than is shown tells whether there is another page.
    found = queries.items(session, project.id, admin, PAGE + 1, number * PAGE)
    return page(
        request,
        "calibration/page.html",
        status=error.status if error else 200,
        rows=[views.row(item) for item in found[:PAGE]],
        has_more=len(found) > PAGE,
        number=number,
        totals=queries.totals(session, project.id),
        changes=[(made, views.change(made)) for made in queries.changes(session, project.id)],
        unjustly=calibration.paused_no_longer_rightly(session, project),
        wanted=LabelingSettings.model_validate(project.labeling).calibration,
        reliable=queries.RELIABLE,
        least_others=queries.LEAST_OTHERS,
        changed=changed,
        error=error,
    )
