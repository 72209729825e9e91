"""The review queue, one comparison in it, and the three things a reviewer can do."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response

from app.accounts.access import AdminDep
from app.db import SessionDep
from app.errors import NotFound
from app.models import Project
from app.projects.access import ProjectDep
from app.render import page, redirect
from app.review import queries, service, views
from app.review.forms import MoreLabelersForm, VerdictForm, WithdrawForm
from app.review.queries import Place

router = APIRouter(prefix="/projects/{project_slug}/review")


@router.get("")
def queue(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    agreement: Annotated[float | None, Query(ge=0, le=1)] = None,
    after: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The queue, lowest agreement first, from after a place on."""
    start = Place(agreement, after) if agreement is not None else None
    rows = queries.queue(session, project.id, start)
    return page(
        request,
        "review/queue.html",
        rows=[(row, views.tally(row.preferences)) for row in rows],
        waiting=queries.waiting(session, project.id),
        following=rows[-1].place if len(rows) == queries.PAGE else None,
        is_start=start is None,
    )


@router.get("/next")
def following(
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    agreement: Annotated[float, Query(ge=0, le=1)] = 0.0,
    after: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """To the next comparison after a place, so that leaving one for later leads on."""
    return _to_next(session, project, Place(agreement, after))


@router.get("/{comparison_id}")
def case(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, comparison_id: int) -> Response:
    """One comparison with everything about it; decisions are offered while it is in review."""
    found = queries.case(session, project.id, comparison_id)
    if found is None:
        raise NotFound(f"This project has no comparison {comparison_id}.", "Go back to the review queue.")
    said = queries.judgments(session, comparison_id)
    return page(
        request,
        "review/case.html",
        case=found,
        judgments=said,
        tally=views.tally([judgment.preference for judgment in said]),
        describe=views.describe,
        steps=views.steps(found.rubric.strengths),
        verdict=queries.verdict(session, comparison_id),
        waiting=queries.waiting(session, project.id),
    )


@router.post("/{comparison_id}/verdict")
def adjudicate(
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    form: Annotated[VerdictForm, Form()],
) -> Response:
    place = service.adjudicate(session, project, admin, comparison_id, verdict=form.verdict, note=form.note)
    return _to_next(session, project, place)


@router.post("/{comparison_id}/more")
def ask_more(
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    form: Annotated[MoreLabelersForm, Form()],
) -> Response:
    return _to_next(session, project, service.ask_more(session, project, admin, comparison_id, more=form.more))


@router.post("/{comparison_id}/withdraw")
def withdraw(
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    form: Annotated[WithdrawForm, Form()],
) -> Response:
    return _to_next(session, project, service.withdraw(session, project, admin, comparison_id, note=form.note))


def _to_next(session: SessionDep, project: Project, after: Place) -> Response:
    place = service.next_place(session, project, after)
    base = f"/projects/{project.slug}/review"
    return redirect(f"{base}/{place.comparison_id}" if place else base)
