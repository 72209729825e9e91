"""Demonstrations: writing them and listing one's own; for admins the list, the review and asking for more."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy.orm import Session

from app.access import gate_queries
from app.access.guards import AdminDep, LabelerDep, ProjectDep
from app.access.members import roles_in
from app.access.sessions import UserDep
from app.db import SessionDep
from app.demonstrations import asking_queries, queries, service, views
from app.demonstrations.forms import (
    MAX_TEXT,
    SKIP_REASONS,
    AnswerForm,
    AskForm,
    DecisionForm,
    DemonstrationFilter,
    PreviewForm,
    RevisionForm,
    SkipForm,
)
from app.demonstrations.queries import Case, Desk
from app.domain.textdiff import diff
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound, PrefloopError
from app.limits import LongFormRoute
from app.models import Project, User
from app.models.prompt import DIFFICULTIES, SPLITS
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/demonstrations", route_class=LongFormRoute)


def _base(project: Project) -> str:
    return f"/projects/{project.slug}/demonstrations"


# ---- writing ---------------------------------------------------------------------------------------------------------


@router.get("/write")
def write(
    request: Request, labeler: LabelerDep, project: ProjectDep, session: SessionDep, skipped: bool = False
) -> Response:
    """Show the prompt on the desk, or the next one. With `skipped`, include skipped prompts if no other is left."""
    desk = service.next_task(session, project, labeler, skipped=skipped)
    return _desk(request, session, project, labeler, desk)


@router.post("/write/{task_id}")
def submit(
    request: Request,
    labeler: LabelerDep,
    project: ProjectDep,
    session: SessionDep,
    task_id: int,
    form: Annotated[AnswerForm, Form()],
) -> Response:
    """Submit the answer; htmx gets the next prompt in the same response. A refused answer comes back as
    it was typed."""
    try:
        service.submit(session, project, labeler, task_id, form)
    except (InvalidInput, Conflict, Gone, Forbidden) as problem:
        desk = service.next_task(session, project, labeler)
        return _desk(request, session, project, labeler, desk, problem=problem, refused=(task_id, form.text))
    if "HX-Request" not in request.headers:
        return redirect(f"{_base(project)}/write")
    return _desk(request, session, project, labeler, service.next_task(session, project, labeler), sent=task_id)


@router.post("/write/{task_id}/skip")
def skip(
    request: Request,
    labeler: LabelerDep,
    project: ProjectDep,
    session: SessionDep,
    task_id: int,
    form: Annotated[SkipForm, Form()],
) -> Response:
    service.skip(session, project, labeler, task_id, form.reason)
    if "HX-Request" not in request.headers:
        return redirect(f"{_base(project)}/write")
    return _desk(request, session, project, labeler, service.next_task(session, project, labeler))


def _desk(
    request: Request,
    session: Session,
    project: Project,
    labeler: User,
    desk: Desk | None,
    *,
    problem: PrefloopError | None = None,
    refused: tuple[int, str] | None = None,
    sent: int | None = None,
) -> Response:
    """Show the editor, or why there is nothing to write; for htmx, only the part that changes.

    Args:
        refused: task and text of a refused answer. The text goes back into the editor if that prompt is still on the
            desk; otherwise it is shown for copying.
        sent: the task whose answer was accepted; its draft is no longer needed.
    """
    again = refused[1] if refused and desk and desk.task_id == refused[0] else None
    response = page(
        request,
        "demonstrations/_desk.html" if "HX-Request" in request.headers else "demonstrations/write.html",
        status=problem.status if problem else 200,
        card=views.card(desk, gate_queries.newest_rubric(session, project.id), again) if desk else None,
        waiting=queries.waiting(session, project.id, labeler.id),
        done=queries.written_today(session, labeler.id),
        idle=None if desk else service.idle(session, project, labeler),
        problem=problem,
        unsent=refused[1] if refused and again is None else "",
        sent=sent,
        skip_reasons=SKIP_REASONS,
        max_text=MAX_TEXT,
    )
    # Errors go to #messages by default (see layout.html), but this response contains the editor.
    response.headers["HX-Retarget"] = "#desk"
    response.headers["Cache-Control"] = "no-store"
    return response


@router.post("/preview")
def preview(
    request: Request, user: UserDep, project: ProjectDep, session: SessionDep, form: Annotated[PreviewForm, Form()]
) -> Response:
    """Render a text as labelers will see it, and how it differs from its original. The labeler's task stays theirs."""
    roles = roles_in(session, project.id, user)
    if not {"labeler", "admin"} & roles:
        raise Forbidden("This page is for people who write or review demonstrations.")
    before: str | None = None
    if form.demonstration_id is not None:
        case = _case(session, project, form.demonstration_id)
        if "admin" not in roles:
            _require_author(user, case)
        before = case.demonstration.text
    elif "labeler" in roles:
        before = service.sample_on_desk(session, project, user, form.task_id)
    lines = None if before is None else diff(before, form.text)
    return page(request, "demonstrations/_preview.html", text=form.text, lines=lines)


@router.get("/own")
def own(
    request: Request,
    labeler: LabelerDep,
    project: ProjectDep,
    session: SessionDep,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    sent: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
) -> Response:
    """List the user's own demonstrations; `sent` is the one that was just revised."""
    listing = queries.own(session, project.id, labeler.id, before)
    return page(request, "demonstrations/own.html", listing=listing, is_start=before is None, sent=sent)


@router.get("/own/{demonstration_id}")
def own_case(
    request: Request, labeler: LabelerDep, project: ProjectDep, session: SessionDep, demonstration_id: int
) -> Response:
    return _own_case(request, session, _own(session, project, labeler, demonstration_id))


@router.post("/own/{demonstration_id}")
def revise(
    request: Request,
    labeler: LabelerDep,
    project: ProjectDep,
    session: SessionDep,
    demonstration_id: int,
    form: Annotated[RevisionForm, Form()],
) -> Response:
    case = _own(session, project, labeler, demonstration_id)
    try:
        service.revise(session, project, labeler, demonstration_id, form)
    except (InvalidInput, Conflict, Forbidden) as problem:
        return _own_case(request, session, case, problem, form.text)
    return redirect(f"{_base(project)}/own?sent={demonstration_id}")


def _own_case(
    request: Request,
    session: Session,
    case: Case,
    problem: PrefloopError | None = None,
    typed: str | None = None,
) -> Response:
    """Like `_show`, for the author."""
    stale = isinstance(problem, Conflict)
    return page(
        request,
        "demonstrations/own_case.html",
        status=problem.status if problem else 200,
        case=case,
        changes=views.changes(case),
        steps=views.steps(case, queries.events(session, case.demonstration.id)),
        seen=service.seen(case.demonstration),
        text=case.demonstration.text if typed is None or stale else typed,
        unsent=typed if stale else "",
        problem=problem,
        max_text=MAX_TEXT,
    )


# ---- the list and the review -----------------------------------------------------------------------------------------


@router.get("")
def listing(
    request: Request,
    user: UserDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: Annotated[DemonstrationFilter, Query()],
) -> Response:
    """List all demonstrations for admins; redirect labelers to the page for writing."""
    if "admin" not in roles_in(session, project.id, user):
        return redirect(f"{_base(project)}/write")
    return page(
        request,
        "demonstrations/list.html",
        wanted=wanted,
        listing=queries.listing(session, project.id, wanted),
        states=queries.states(session, project.id),
        authors=queries.authors(session, project.id),
        slices=queries.slices(session, project.id),
        tasks=asking_queries.count_tasks(session, project.id),
        splits=SPLITS,
        difficulties=DIFFICULTIES,
    )


@router.get("/review")
def review(
    admin: AdminDep, project: ProjectDep, session: SessionDep, after: Annotated[int, Query(ge=0, lt=2**63)] = 0
) -> Response:
    """Redirect to the next demonstration that waits for a review."""
    return _to_next(session, project, after)


def _to_next(session: Session, project: Project, after: int) -> Response:
    following = queries.next_pending(session, project.id, after)
    return redirect(f"{_base(project)}/{following}" if following else _base(project))


# ---- asking ----------------------------------------------------------------------------------------------------------


@router.get("/ask")
def ask_form(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    wish: Annotated[AskForm, Query()],
    asked: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Show the form and how many prompts match. htmx requests only this number while the form is filled in."""
    if "HX-Request" in request.headers:
        eligible = asking_queries.count_eligible(session, project, wish)
        return page(request, "demonstrations/_eligible.html", eligible=eligible, wish=wish)
    return _ask(request, session, project, wish, asked=asked)


@router.post("/ask")
def ask(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[AskForm, Form()]
) -> Response:
    try:
        n = service.ask(session, project, admin, form)
    except InvalidInput as problem:
        return _ask(request, session, project, form, problem=problem)
    return redirect(f"{_base(project)}/ask?asked={n}")


def _ask(
    request: Request,
    session: Session,
    project: Project,
    wish: AskForm,
    *,
    problem: PrefloopError | None = None,
    asked: int | None = None,
) -> Response:
    return page(
        request,
        "demonstrations/ask.html",
        status=problem.status if problem else 200,
        wish=wish,
        key=wish.key or uuid4(),
        eligible=asking_queries.count_eligible(session, project, wish),
        slices=queries.slices(session, project.id),
        difficulties=DIFFICULTIES,
        tasks=asking_queries.open_tasks(session, project.id),
        total=asking_queries.count_tasks(session, project.id),
        asked=asked,
        problem=problem,
        skip_reasons=SKIP_REASONS,
    )


@router.post("/ask/withdraw")
def withdraw(
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    task_id: Annotated[int | None, Form(ge=0, lt=2**63)] = None,
) -> Response:
    service.withdraw(session, project, admin, task_id)
    return redirect(f"{_base(project)}/ask")


# ---- one demonstration -----------------------------------------------------------------------------------------------


@router.get("/{demonstration_id}")
def show(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, demonstration_id: int
) -> Response:
    return _show(request, session, project, demonstration_id)


@router.post("/{demonstration_id}/approve")
def approve(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    demonstration_id: int,
    form: Annotated[DecisionForm, Form()],
) -> Response:
    try:
        service.approve(session, project, admin, demonstration_id, form)
    except (InvalidInput, Conflict) as problem:
        return _show(request, session, project, demonstration_id, problem, form)
    return _to_next(session, project, demonstration_id)


@router.post("/{demonstration_id}/reject")
def reject(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    demonstration_id: int,
    form: Annotated[DecisionForm, Form()],
) -> Response:
    try:
        service.reject(session, project, admin, demonstration_id, form)
    except (InvalidInput, Conflict) as problem:
        return _show(request, session, project, demonstration_id, problem, form)
    return _to_next(session, project, demonstration_id)


def _show(
    request: Request,
    session: Session,
    project: Project,
    demonstration_id: int,
    problem: PrefloopError | None = None,
    form: DecisionForm | None = None,
) -> Response:
    """Show one demonstration; after a refused decision, with what was typed.

    If the text has changed since, the typed text is shown for copying and does not replace it.
    """
    case = _case(session, project, demonstration_id)
    typed = form.text if form else None
    stale = isinstance(problem, Conflict)
    return page(
        request,
        "demonstrations/case.html",
        status=problem.status if problem else 200,
        case=case,
        changes=views.changes(case),
        steps=views.steps(case, queries.events(session, case.demonstration.id)),
        seen=service.seen(case.demonstration),
        text=case.demonstration.text if typed is None or stale else typed,
        unsent=typed if stale else "",
        note=form.note if form else "",
        states=queries.states(session, project.id),
        problem=problem,
        max_text=MAX_TEXT,
    )


def _case(session: Session, project: Project, demonstration_id: int) -> Case:
    case = queries.case(session, project.id, demonstration_id) if demonstration_id < 2**63 else None
    if case is None:
        raise NotFound(f"This project has no demonstration {demonstration_id}.", "Go back to the list.")
    return case


def _own(session: Session, project: Project, labeler: User, demonstration_id: int) -> Case:
    case = _case(session, project, demonstration_id)
    _require_author(labeler, case)
    return case


def _require_author(user: User, case: Case) -> None:
    if case.demonstration.author_id != user.id:
        raise Forbidden("Somebody else wrote this demonstration.", "Your own are in your list.")
