"""Red teaming: writing an attempt, viewing one; for staff, all attempts and how often they succeed."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access import gate
from app.access.guards import AdminDep, LabelerDep, ProjectDep, StaffDep
from app.access.members import roles_in
from app.access.sessions import UserDep
from app.db import SessionDep
from app.errors import Conflict, Forbidden, InvalidInput, NotFound, PrefloopError, TooMany
from app.form_fields import TypedDep, not_accepted, reasons_of
from app.limits import FormRoute
from app.models import Project, User
from app.red_team import queries, service, views
from app.red_team.forms import (
    MAX_GOAL,
    MAX_NOTE,
    MAX_PROMPT,
    MAX_TAG,
    SEVERITIES,
    AcceptForm,
    AttemptFilter,
    AttemptForm,
    RatingForm,
)
from app.red_team.queries import Seen
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/red-team", route_class=FormRoute)


def _base(project: Project) -> str:
    return f"/projects/{project.slug}/red-team"


@router.get("")
def desk(
    request: Request,
    user: UserDep,
    project: ProjectDep,
    session: SessionDep,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    rated: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
) -> Response:
    """Show labelers the page for writing attempts, with their own; redirect other staff to all attempts."""
    if "labeler" not in roles_in(session, project.id, user):
        return redirect(f"{_base(project)}/attempts")
    return _desk(request, session, project, user, before=before, rated=rated)


@router.get("/own")
def own(request: Request, labeler: LabelerDep, project: ProjectDep, session: SessionDep) -> Response:
    """Show only the user's newest attempts, while answers are pending."""
    listing = queries.own(session, project.id, labeler.id, None)
    return page(request, "red_team/_own.html", listing=listing, severities=SEVERITIES, before=None)


@router.post("")
def send(request: Request, labeler: LabelerDep, project: ProjectDep, session: SessionDep, typed: TypedDep) -> Response:
    """Send an attempt. A refused attempt comes back as it was typed."""
    state = request.app.state
    try:
        form = AttemptForm.model_validate(typed)
        attempt = service.send(session, state.store, project, labeler, form, state.settings.sampling_server)
    except ValidationError as error:
        return _desk(request, session, project, labeler, typed=typed, problem=not_accepted(reasons_of(error)))
    except (InvalidInput, Conflict, TooMany, Forbidden) as problem:
        return _desk(request, session, project, labeler, typed=typed, problem=problem)
    return redirect(f"{_base(project)}/{attempt.id}")


def _desk(
    request: Request,
    session: Session,
    project: Project,
    labeler: User,
    *,
    before: int | None = None,
    rated: int | None = None,
    typed: dict[str, str] | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    values = {"text": "", "goal": "", "domain": "", "safety_category": ""} | (typed or {})
    return page(
        request,
        "red_team/desk.html",
        status=problem.status if problem else 200,
        listing=queries.own(session, project.id, labeler.id, before),
        categories=views.categories(queries.categories(session, project.id)),
        domains=queries.domains(session, project.id),
        severities=SEVERITIES,
        # A conflict is about the key, so a new key lets the text be sent after all.
        key=uuid4() if isinstance(problem, Conflict) or not typed else typed.get("idempotency_key", uuid4()),
        values=values,
        limits={"text": MAX_PROMPT, "goal": MAX_GOAL},
        problem=problem,
        closed=gate.closed(session, project, labeler),
        before=before,
        rated=rated,
    )


# ---- all attempts, for staff -----------------------------------------------------------------------------------------


@router.get("/attempts")
def attempts(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: Annotated[AttemptFilter, Query()],
    new: Annotated[int | None, Query(ge=0)] = None,
    known: Annotated[int, Query(ge=0)] = 0,
    unrated: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Show how often attempts succeed, and the attempts.

    `new`, `known` and `unrated` report the result of accepting attempts.
    """
    return page(
        request,
        "red_team/attempts.html",
        wanted=wanted,
        listing=queries.listing(session, project.id, wanted),
        states=queries.count_states(session, project),
        rates=views.rates(queries.outcomes(session, project.id)),
        models=queries.models(session, project.id),
        categories=queries.categories(session, project.id),
        severities=SEVERITIES,
        accepted=None if new is None else service.Accepted(new, known, unrated),
    )


@router.post("/attempts/accept")
def accept(admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[AcceptForm, Form()]) -> Response:
    if not form.attempts:
        raise InvalidInput("No attempt is chosen.", "Tick the attempts that should become prompts.")
    done = service.accept(session, project, admin, form)
    return redirect(f"{_base(project)}/attempts?new={done.new}&known={done.known}&unrated={done.unrated}")


# ---- one attempt -----------------------------------------------------------------------------------------------------


@router.get("/{attempt_id}")
def show(request: Request, user: UserDep, project: ProjectDep, session: SessionDep, attempt_id: int) -> Response:
    return _show(request, session, project, user, attempt_id)


@router.get("/{attempt_id}/answer")
def answer(request: Request, user: UserDep, project: ProjectDep, session: SessionDep, attempt_id: int) -> Response:
    """Return the part of the page that changes while the answer is pending."""
    return _show(request, session, project, user, attempt_id, "red_team/_answer.html")


@router.post("/{attempt_id}/rating")
def rate(
    request: Request,
    labeler: LabelerDep,
    project: ProjectDep,
    session: SessionDep,
    attempt_id: int,
    form: Annotated[RatingForm, Form()],
) -> Response:
    try:
        service.rate(session, project, labeler, attempt_id, form)
    except (Conflict, Forbidden) as problem:
        return _show(request, session, project, labeler, attempt_id, problem=problem)
    return redirect(f"{_base(project)}?rated={attempt_id}")


@router.post("/{attempt_id}/again")
def send_again(
    request: Request, labeler: LabelerDep, project: ProjectDep, session: SessionDep, attempt_id: int
) -> Response:
    state = request.app.state
    service.send_again(session, state.store, project, labeler, attempt_id, state.settings.sampling_server)
    return redirect(f"{_base(project)}/{attempt_id}")


@router.post("/{attempt_id}/cancel")
def cancel(labeler: LabelerDep, project: ProjectDep, session: SessionDep, attempt_id: int) -> Response:
    service.cancel(session, project, labeler, attempt_id)
    return redirect(f"{_base(project)}/{attempt_id}")


def _show(
    request: Request,
    session: Session,
    project: Project,
    user: User,
    attempt_id: int,
    template: str = "red_team/attempt.html",
    problem: PrefloopError | None = None,
) -> Response:
    seen = _visible(session, project, user, attempt_id)
    boxes, own_tag = views.tag_boxes(seen.attempt.tags)
    response = page(
        request,
        template,
        status=problem.status if problem else 200,
        seen=seen,
        attempt=seen.attempt,
        is_own=seen.attempt.author_id == user.id and "labeler" in roles_in(session, project.id, user),
        busy=queries.busy(session, seen.attempt) if seen.state == "waiting" else None,
        severities=SEVERITIES,
        tags=boxes,
        own_tag=own_tag,
        limits={"tag": MAX_TAG, "note": MAX_NOTE},
        problem=problem,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _visible(session: Session, project: Project, user: User, attempt_id: int) -> Seen:
    """Return the attempt if the user may see it: its author and staff may."""
    seen = queries.attempt(session, project.id, attempt_id) if attempt_id < 2**63 else None
    if seen is None:
        raise NotFound(f"This project has no attempt {attempt_id}.", "Go back to your own attempts.")
    if seen.attempt.author_id != user.id and not {"admin", "operator"} & roles_in(session, project.id, user):
        raise Forbidden("Somebody else made this attempt.", "Your own are on the red-team page.")
    return seen
