"""The labeling page. The page's script asks for JSON with the card as HTML in it. Without JavaScript, every form
returns a page made from the same template."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from app.access.guards import LabelerDep, ProjectDep
from app.access.sessions import UserDep
from app.db import SessionDep
from app.demonstrations import service as demonstrations
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound, PrefloopError
from app.labeling import answers, assigning, history, leases, outlook, views
from app.labeling.forms import Desk, Draft, LabelForm, SkipForm
from app.labeling.queries import Position, Task
from app.limits import FormRoute
from app.models import Project, User
from app.render import fragment, page, redirect

router = APIRouter(route_class=FormRoute)


@router.get("/label")
def start(request: Request, labeler: UserDep, session: SessionDep) -> Response:
    """Redirect to one of the labeler's projects that has a task for them."""
    slug = outlook.project_with_work(session, labeler)
    if slug:
        return redirect(f"/projects/{slug}/label")
    return page(request, "labeling/no_work.html", writing=demonstrations.projects_with_tasks(session, labeler))


@router.get("/projects/{project_slug}/label")
def show(request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep) -> Response:
    task = assigning.next_task(session, project, labeler)
    if task is None and not _wants_json(request) and outlook.idle(session, project, labeler).reason == "quiz":
        return redirect(f"/projects/{project.slug}/quiz")
    return _desk(request, session, project, labeler, task)


@router.get("/projects/{project_slug}/label/ahead")
def ahead(
    request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep, beside: UUID | None = None
) -> Response:
    """Return the card after the one on the desk, for the script to show later; None if nothing follows."""
    task = assigning.next_task(session, project, labeler, beside=beside)
    return JSONResponse({"card": _ahead(request, session, labeler, task)})


@router.post("/projects/{project_slug}/label/here")
def here(
    project: ProjectDep, labeler: LabelerDep, session: SessionDep, desk: Annotated[Desk, Form()] = None
) -> Response:
    """Extend the leases of a labeler who is at work.

    If the desk's lease expired and nobody else has taken the task, it is leased to them again.
    """
    live = leases.renew(session, project, labeler)
    if desk is not None and desk not in live:
        assigning.next_task(session, project, labeler, again=desk)
        live = leases.renew(session, project, labeler)
    return JSONResponse({"live": [str(lease_id) for lease_id in live]})


@router.post("/projects/{project_slug}/label/undo")
def undo(request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep) -> Response:
    """Take back the last answer and show its card again, filled in."""
    lease_id = answers.undo(session, project, labeler)
    task = assigning.next_task(session, project, labeler, again=lease_id)
    if not _wants_json(request):
        return redirect(f"/projects/{project.slug}/label")
    return _desk(request, session, project, labeler, task)


@router.get("/projects/{project_slug}/label/mine")
def mine(
    request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep, before: int | None = None
) -> Response:
    """Show the labeler's answers in this project and which may still change."""
    return page(request, "labeling/mine.html", mine=history.mine(session, project, labeler, before))


@router.get("/projects/{project_slug}/label/judgments/{judgment_id}")
def show_answer(
    request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep, judgment_id: int
) -> Response:
    judgment = answers.own_judgment(session, project, judgment_id, labeler)
    if why := answers.why_final(session, judgment):
        raise Conflict(f"This answer can no longer be changed. {why}", "Tell an admin if it needs a change.")
    return _answer(request, session, project, labeler, judgment_id)


@router.post("/projects/{project_slug}/label/judgments/{judgment_id}")
def edit(
    request: Request,
    project: ProjectDep,
    labeler: LabelerDep,
    session: SessionDep,
    judgment_id: int,
    form: Annotated[LabelForm, Form()],
) -> Response:
    try:
        answers.edit(session, project, judgment_id, labeler, form)
    except InvalidInput as problem:
        return _answer(request, session, project, labeler, judgment_id, problem, form)
    return redirect(f"/projects/{project.slug}/label/mine")


@router.post("/projects/{project_slug}/label/{lease_id}")
def submit(
    request: Request,
    project: ProjectDep,
    labeler: LabelerDep,
    session: SessionDep,
    lease_id: UUID,
    form: Annotated[LabelForm, Form()],
) -> Response:
    """Submit the answer. A refused answer comes back with the reason and with the text that was typed."""
    try:
        answers.submit(session, project, lease_id, labeler, form)
    except (InvalidInput, Conflict, Gone, NotFound, Forbidden) as problem:
        # Nothing was written. Show the same comparison again if possible.
        task = assigning.next_task(session, project, labeler, again=lease_id)
        return _desk(request, session, project, labeler, task, problem=problem, refused=(lease_id, form))
    return _next(request, session, project, labeler, form)


@router.post("/projects/{project_slug}/label/{lease_id}/skip")
def skip(
    request: Request,
    project: ProjectDep,
    labeler: LabelerDep,
    session: SessionDep,
    lease_id: UUID,
    form: Annotated[SkipForm, Form()],
) -> Response:
    """Skip the task and show another one."""
    skipped = leases.skip(session, project, lease_id, labeler, form.words())
    return _next(request, session, project, labeler, form, skipped)


@router.post("/projects/{project_slug}/label/{lease_id}/release")
def release(project: ProjectDep, labeler: LabelerDep, session: SessionDep, lease_id: UUID) -> Response:
    """Release the preloaded task when the page was closed, unless it is on the desk of another tab."""
    leases.release_ahead(session, project, lease_id, labeler)
    return Response(status_code=204)


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _next(
    request: Request,
    session: Session,
    project: Project,
    labeler: User,
    form: LabelForm | SkipForm,
    skipped: Position | None = None,
) -> Response:
    """Respond after an answer or a skip.

    A page without JavaScript gets the page again. The script already shows the next card. If that card is still the
    labeler's, the response holds the one to follow it, so the script need not ask for it.
    """
    if _wants_json(request) and form.desk:
        is_theirs, ahead = assigning.following(session, project, labeler, form.desk)
        if is_theirs:
            numbers = _numbers(outlook.progress(session, project, labeler)) if form.count else {}
            card = _ahead(request, session, labeler, ahead)
            return JSONResponse({"desk": None, "beside": str(form.desk), "card": card} | numbers)
    task = assigning.next_task(session, project, labeler, again=form.desk, skipped=skipped)
    if _wants_json(request) or task is None:
        return _desk(request, session, project, labeler, task, skipped=skipped)
    return redirect(f"/projects/{project.slug}/label")


def _numbers(progress: outlook.Progress) -> dict[str, object]:
    return {"done": progress.done, "left": progress.to_go}


def _ahead(request: Request, session: Session, labeler: User, task: Task | None) -> str | None:
    """Return the card that the script shows later. The script fills in the numbers when it shows the card."""
    if task is None:
        return None
    card = views.card(task, history.taken_back(session, task, labeler))
    return fragment(request, "labeling/_desk.html", card=card, progress=outlook.Progress(0, 0), problem=None, unsent="")


def _desk(
    request: Request,
    session: Session,
    project: Project,
    labeler: User,
    task: Task | None,
    *,
    skipped: Position | None = None,
    problem: PrefloopError | None = None,
    refused: tuple[UUID, LabelForm] | None = None,
) -> Response:
    """Show the card, or why there is none, as a page or as JSON for the script.

    Args:
        refused: the lease and form of a refused answer. Its text goes back into the form if the same comparison is on
            the desk again; otherwise it is shown for copying.
    """
    same = bool(task and refused and leases.is_same_comparison(session, task, refused[0]))
    sent = refused[1] if refused else None
    draft: Draft | None = (sent if same else history.taken_back(session, task, labeler)) if task else None
    progress = outlook.progress(session, project, labeler)
    context = {
        "card": views.card(task, draft) if task else None,
        "progress": progress,
        "idle": None if task else outlook.idle(session, project, labeler, skipped),
        "problem": problem,
        "unsent": sent.rationale if sent and not same else "",
    }
    status = problem.status if problem else 200
    if _wants_json(request):
        html = fragment(request, "labeling/_desk.html", **context)
        response: Response = JSONResponse({"desk": html} | _numbers(progress), status)
    else:
        response = page(request, "labeling/page.html", status=status, **context)
    # Going back in the browser's history must show the current desk, not a card that was answered.
    response.headers["Cache-Control"] = "no-store"
    return response


def _answer(
    request: Request,
    session: Session,
    project: Project,
    labeler: User,
    judgment_id: int,
    problem: InvalidInput | None = None,
    refused: LabelForm | None = None,
) -> Response:
    """Show an answer's card for changing it."""
    judgment = answers.own_judgment(session, project, judgment_id, labeler)
    task = history.task_of(session, judgment)
    response = page(
        request,
        "labeling/page.html",
        status=problem.status if problem else 200,
        card=views.card(task, refused or history.as_shown(session, judgment), judgment_id=judgment.id),
        progress=outlook.progress(session, project, labeler),
        problem=problem,
        unsent="",
    )
    response.headers["Cache-Control"] = "no-store"
    return response
