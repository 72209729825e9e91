"""The labeling page. One template serves the page and the swap; without JavaScript every form answers with a page."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from app.accounts.access import LabelerDep
from app.db import SessionDep
from app.errors import Conflict, Gone, InvalidInput, PrefloopError
from app.labeling import assigning, service, views
from app.labeling.forms import LabelForm
from app.labeling.queries import Position, Task
from app.models import Project, User
from app.projects.access import ProjectDep
from app.render import page, redirect

router = APIRouter()


@router.get("/label")
def start(request: Request, labeler: LabelerDep, session: SessionDep) -> Response:
    """To a project that has a task for this labeler."""
    slug = assigning.project_with_work(session, labeler)
    return redirect(f"/projects/{slug}/label") if slug else page(request, "labeling/no_work.html")


@router.get("/projects/{project_slug}/label")
def show(request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep) -> Response:
    return _desk(request, session, project, labeler, assigning.next_task(session, project, labeler))


@router.post("/projects/{project_slug}/label/{lease_id}")
def submit(
    request: Request,
    project: ProjectDep,
    labeler: LabelerDep,
    session: SessionDep,
    lease_id: UUID,
    form: Annotated[LabelForm, Form()],
) -> Response:
    """Takes the answer; htmx gets the next card in the same response. A refused answer comes back with the reason."""
    try:
        service.submit(session, project, lease_id, labeler, form)
    except (InvalidInput, Conflict, Gone) as problem:
        # Nothing was written. The same comparison comes back if it can, and what was typed in any case.
        task = assigning.next_task(session, project, labeler, again=lease_id)
        return _desk(request, session, project, labeler, task, problem=problem, refused=(lease_id, form))
    if "HX-Request" not in request.headers:
        return redirect(f"/projects/{project.slug}/label")
    return _desk(request, session, project, labeler, assigning.next_task(session, project, labeler))


@router.post("/projects/{project_slug}/label/{lease_id}/skip")
def skip(request: Request, project: ProjectDep, labeler: LabelerDep, session: SessionDep, lease_id: UUID) -> Response:
    """Gives the task back and shows another one."""
    skipped = assigning.release(session, project, lease_id, labeler)
    task = assigning.next_task(session, project, labeler, skipped=skipped)
    if task and "HX-Request" not in request.headers:
        return redirect(f"/projects/{project.slug}/label")
    return _desk(request, session, project, labeler, task, skipped=skipped)


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
    """The card, or why there is none; the whole page, or for htmx only what changes.

    Args:
        refused: the lease and form of an answer that was not taken. Its text goes back into the form when the same
            comparison is on the desk again, else it is shown to be copied.
    """
    same = bool(task and refused and assigning.is_same_comparison(session, task, refused[0]))
    draft = refused[1] if refused else None
    response = page(
        request,
        "labeling/_desk.html" if "HX-Request" in request.headers else "labeling/page.html",
        status=problem.status if problem else 200,
        card=views.card(task, draft if same else None) if task else None,
        progress=assigning.progress(session, project, labeler, task),
        idle=None if task else assigning.idle(session, project, labeler, skipped),
        problem=problem,
        unsent=draft.rationale if draft and not same else "",
    )
    # Errors go to #messages by themselves (see layout.html); this one brings its card along.
    response.headers["HX-Retarget"] = "#desk"
    # Going back in the browser's history shows what is on the desk now, not a card that was answered.
    response.headers["Cache-Control"] = "no-store"
    return response
