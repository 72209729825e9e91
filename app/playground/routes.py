"""The playground's pages."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import ProjectDep, StaffDep
from app.db import SessionDep
from app.errors import Conflict, InvalidInput, PrefloopError, TooMany
from app.limits import FormRoute
from app.models import Project
from app.playground import queries, service
from app.playground.forms import (
    MAX_CORRECTION,
    MAX_TEXT,
    ChatForm,
    CorrectionForm,
    FailureForm,
    Kept,
    SayForm,
    VoteForm,
)
from app.queue import has_worker
from app.red_team.forms import CATEGORIES, SEVERITIES
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/playground", route_class=FormRoute)


@router.get("")
def playground(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    """Show all chats, and the form for a new one."""
    return _list(request, session, project)


@router.post("")
def start(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[ChatForm, Form()],
) -> Response:
    try:
        chat = service.start(session, project, staff, form)
    except InvalidInput as problem:
        return _list(request, session, project, problem)
    return redirect(f"{_base(project)}/{chat.id}")


@router.get("/{chat_id}")
def show(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    chat_id: int,
    kept: Kept = "",
) -> Response:
    return _chat(request, session, project, chat_id, kept=kept)


@router.get("/{chat_id}/turns")
def turns(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, chat_id: int) -> Response:
    """Return the part of the page that changes while answers are pending."""
    return _chat(request, session, project, chat_id, "playground/_turns.html")


@router.post("/{chat_id}")
def say(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    chat_id: int,
    form: Annotated[SayForm, Form()],
) -> Response:
    """Ask both models. A refused message comes back as it was typed."""
    state = request.app.state
    try:
        service.say(session, state.store, project, chat_id, form, state.settings.sampling_server)
    except (InvalidInput, Conflict, TooMany) as problem:
        return _chat(request, session, project, chat_id, problem=problem, text=form.text)
    return redirect(f"{_base(project)}/{chat_id}#write")


@router.post("/{chat_id}/turns/{turn_id}/again")
def again(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, chat_id: int, turn_id: int
) -> Response:
    state = request.app.state
    service.say_again(session, state.store, project, chat_id, turn_id, state.settings.sampling_server)
    return redirect(f"{_base(project)}/{chat_id}#write")


@router.post("/{chat_id}/turns/{turn_id}/vote")
def vote(
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    chat_id: int,
    turn_id: int,
    form: Annotated[VoteForm, Form()],
) -> Response:
    service.vote(session, project, chat_id, turn_id, form.vote)
    return redirect(f"{_base(project)}/{chat_id}#turn-{turn_id}")


@router.post("/{chat_id}/turns/{turn_id}/ask")
def ask_labelers(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, chat_id: int, turn_id: int
) -> Response:
    try:
        service.ask_labelers(session, project, staff, chat_id, turn_id)
    except Conflict as problem:
        return _chat(request, session, project, chat_id, problem=problem)
    return redirect(f"{_base(project)}/{chat_id}#turn-{turn_id}")


@router.post("/{chat_id}/turns/{turn_id}/failure")
def report_failure(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    chat_id: int,
    turn_id: int,
    form: Annotated[FailureForm, Form()],
) -> Response:
    try:
        service.report_failure(session, project, staff, chat_id, turn_id, form)
    except Conflict as problem:
        return _chat(request, session, project, chat_id, problem=problem)
    return redirect(f"{_base(project)}/{chat_id}?kept=failure#turn-{turn_id}")


@router.post("/{chat_id}/turns/{turn_id}/correction")
def correct(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    chat_id: int,
    turn_id: int,
    form: Annotated[CorrectionForm, Form()],
) -> Response:
    """Store a correction. A refused one comes back as it was written."""
    try:
        service.correct(session, project, staff, chat_id, turn_id, form)
    except (Conflict, InvalidInput) as problem:
        refused = (turn_id, form.side, form.text)
        return _chat(request, session, project, chat_id, problem=problem, refused=refused)
    return redirect(f"{_base(project)}/{chat_id}?kept=correction#turn-{turn_id}")


def _base(project: Project) -> str:
    return f"/projects/{project.slug}/playground"


def _list(request: Request, session: Session, project: Project, problem: InvalidInput | None = None) -> Response:
    return page(
        request,
        "playground/list.html",
        status=problem.status if problem else 200,
        chats=queries.chats(session, project.id),
        models=service.models(session, project),
        policy_id=project.policy_id,
        problem=problem,
    )


def _chat(
    request: Request,
    session: Session,
    project: Project,
    chat_id: int,
    template: str = "playground/chat.html",
    problem: PrefloopError | None = None,
    text: str = "",
    kept: Kept = "",
    refused: tuple[int, int, str] | None = None,
) -> Response:
    """Show a chat.

    Args:
        text: a refused message. refused: a refused correction, as (turn id, side, text).
    """
    chat = service.any_chat(session, project, chat_id)
    response = page(
        request,
        template,
        status=problem.status if problem else 200,
        chat=chat,
        turns=queries.turns(session, chat_id),
        worker=has_worker(session),
        key=uuid4(),
        most={"text": MAX_TEXT, "correction": MAX_CORRECTION, "turns": service.MOST_TURNS},
        problem=problem,
        text=text,
        kept=kept,
        refused=refused,
        categories=CATEGORIES,
        severities=SEVERITIES,
    )
    response.headers["Cache-Control"] = "no-store"
    return response
