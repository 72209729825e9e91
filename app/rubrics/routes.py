"""The rubric's page: the draft in an editor with its preview, and the published versions."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from app.accounts.access import AdminDep
from app.db import SessionDep
from app.errors import Conflict, InvalidInput, PrefloopError
from app.models import Project
from app.projects.access import ProjectDep
from app.render import page, redirect
from app.rubrics import queries, service, views
from app.rubrics.forms import RubricForm

router = APIRouter(prefix="/projects/{project_slug}/rubric")
RubricFormDep = Annotated[RubricForm, Form()]


@router.get("")
def show(request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep) -> Response:
    return _page(request, session, project)


@router.post("")
def save(request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, form: RubricFormDep) -> Response:
    try:
        service.save_draft(session, project, form, admin)
    except (Conflict, InvalidInput) as problem:
        return _page(request, session, project, problem=problem, sent=form)
    return redirect(f"/projects/{project.slug}/rubric")


@router.post("/publish")
def publish(
    request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, form: RubricFormDep
) -> Response:
    try:
        service.publish(session, project, form, admin)
    except (Conflict, InvalidInput) as problem:
        return _page(request, session, project, problem=problem, sent=form)
    return redirect(f"/projects/{project.slug}/rubric")


@router.post("/discard")
def discard(
    request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, form: RubricFormDep
) -> Response:
    try:
        service.discard_draft(session, project, form.revision)
    except Conflict as problem:
        return _page(request, session, project, problem=problem, sent=form)
    return redirect(f"/projects/{project.slug}/rubric")


@router.post("/preview")
def preview(request: Request, project: ProjectDep, admin: AdminDep, form: RubricFormDep) -> Response:
    """What is in the editor, as the labeler would see it. Nothing is stored."""
    return page(request, "rubrics/_preview.html", card=views.preview(form))


@router.get("/{version}")
def version(request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, version: int) -> Response:
    rubric = service.published(session, project, version)
    return page(request, "rubrics/version.html", rubric=rubric, card=views.preview(rubric))


def _page(
    request: Request,
    session: Session,
    project: Project,
    *,
    problem: PrefloopError | None = None,
    sent: RubricForm | None = None,
) -> Response:
    """The editor. After a conflict it holds what was sent, on top of the other admin's draft, which is shown too."""
    versions = queries.versions(session, project.id)
    newest = versions[0].rubric if versions else None
    draft = queries.draft(session, project.id)
    form = views.editor(draft, newest)
    if sent:
        revision = form.revision if isinstance(problem, Conflict) else sent.revision
        form = sent.model_copy(update={"revision": revision})
    not_begun, begun = queries.open_comparisons(session, project.id)
    return page(
        request,
        "rubrics/page.html",
        status=problem.status if problem else 200,
        form=form,
        card=views.preview(form),
        draft=draft,
        editor=queries.user_name(session, draft.edited_by) if draft else None,
        theirs=draft if isinstance(problem, Conflict) else None,
        versions=versions,
        next_version=(newest.version or 0) + 1 if newest else 1,
        not_begun=not_begun,
        begun=begun,
        problem=problem,
    )
