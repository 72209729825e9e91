"""The rubric's pages: the draft in an editor with a preview, the published versions, and the differences
between two."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, HasRole, MemberDep, ProjectDep
from app.db import SessionDep
from app.errors import Conflict, InvalidInput, PrefloopError
from app.limits import FormRoute
from app.models import Project, Rubric, User
from app.render import page, redirect
from app.rubrics import comparing, editing, queries, service, views
from app.rubrics.forms import ANSWERS, RubricForm, RubricFormDep, RubricRefused


class RubricRoute(FormRoute):
    """Accepts forms that are too long, so that they can come back with the reason and all of their text."""

    most = 16 << 20
    most_fields = 10_000


router = APIRouter(prefix="/projects/{project_slug}/rubric", route_class=RubricRoute)
ReaderDep = Annotated[User, Depends(HasRole("labeler", "admin"))]
# Waiting comparisons are counted up to this number.
COUNT_LIMIT = 10_000


@router.get("")
def show(request: Request, project: ProjectDep, member: MemberDep, reader: ReaderDep, session: SessionDep) -> Response:
    """The editor, for admins; labelers read the newest published version."""
    if "admin" in member.roles:
        return _page(request, session, project)
    versions = queries.versions(session, project.id)
    return page(request, "rubrics/read.html", newest=versions[0].rubric if versions else None)


@router.post("")
def save(request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, form: RubricFormDep) -> Response:
    try:
        service.save_draft(session, project, form.draft(), form.revision, admin)
    except (Conflict, InvalidInput) as problem:
        return _page(request, session, project, problem=problem, sent=form)
    return redirect(f"/projects/{project.slug}/rubric")


@router.post("/publish")
def publish(
    request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, form: RubricFormDep
) -> Response:
    try:
        rubric = service.publish(session, project, form.content(), form.revision, admin, form.retake)
    except (Conflict, InvalidInput) as problem:
        return _page(request, session, project, problem=problem, sent=form)
    return redirect(f"/projects/{project.slug}/rubric/{rubric.version}")


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
    """Show what is in the editor as the labeler would see it. Nothing is stored."""
    shown, reasons = views.typed_preview(form)
    return page(request, "rubrics/_preview.html", shown=shown, reasons=reasons)


@router.post("/edit")
def edit(
    request: Request,
    project: ProjectDep,
    admin: AdminDep,
    session: SessionDep,
    form: RubricFormDep,
    do: Annotated[str, Form()] = "",
) -> Response:
    """Apply a button that changes the form; return the page, or only the section for htmx. Nothing is stored."""
    edited = editing.edit(form, do)
    if "HX-Request" not in request.headers or not edited.section:
        return _page(request, session, project, sent=edited.form, focus=edited.focus)
    template = "rubrics/_scale_section.html" if edited.section == "scale" else "rubrics/_rows_section.html"
    section: dict[str, Any] = {"section": edited.section, "form": edited.form, "focus": edited.focus, "errors": {}}
    return page(request, template, **section, **views.EDITOR)


@router.get("/diff")
def diff(
    request: Request,
    project: ProjectDep,
    admin: AdminDep,
    session: SessionDep,
    was: Annotated[str, Query()] = "",
    now: Annotated[str, Query()] = "draft",
) -> Response:
    """Show what changed from one version (or the draft) to another."""
    old, new = _version(session, project, was), _version(session, project, now)
    return page(
        request,
        "rubrics/diff.html",
        old=old,
        new=new,
        sections=comparing.compare(old, new),
        versions=queries.versions(session, project.id),
        draft=queries.draft(session, project.id),
    )


def _version(session: Session, project: Project, name: str) -> Rubric:
    if name == "draft":
        return service.draft(session, project)
    return service.published(session, project, int(name) if name.isdecimal() and len(name) < 10 else 0)


@router.get("/{version:int}")
def version(request: Request, project: ProjectDep, admin: AdminDep, session: SessionDep, version: int) -> Response:
    rubric = service.published(session, project, version)
    found = queries.versions(session, project.id)
    at = next(n for n, row in enumerate(found) if row.rubric.id == rubric.id)
    before = found[at + 1].rubric if at + 1 < len(found) else None
    return page(
        request,
        "rubrics/version.html",
        this=found[at],
        before=before,
        newest=found[0].rubric,
        judged_before=sum(row.judgments for row in found[at + 1 :]),
        quiz_news=views.quiz_news(rubric, before),
        settings=comparing.settings(rubric),
        scale_name=views.scale_name(rubric),
        shown=views.preview(rubric),
        reasons={},
        answers=ANSWERS,
    )


@router.get("/{form}")
def back_to_the_editor(project: ProjectDep, admin: AdminDep, form: Literal["edit", "publish", "discard"]) -> Response:
    """Redirect to the editor. Without JavaScript, a form that was refused leaves its own address in the browser."""
    return redirect(f"/projects/{project.slug}/rubric")


def _page(
    request: Request,
    session: Session,
    project: Project,
    *,
    problem: PrefloopError | None = None,
    sent: RubricForm | None = None,
    focus: str = "",
) -> Response:
    """Show the editor. After a conflict it holds the form's text with the stored revision, and shows the
    differences."""
    versions = queries.versions(session, project.id)
    newest = versions[0].rubric if versions else None
    draft = queries.draft(session, project.id)
    form = views.editor(draft, newest)
    if sent:
        revision = form.revision if isinstance(problem, Conflict) else sent.revision
        form = sent._replace(revision=revision)
        if isinstance(problem, RubricRefused):
            form = form.filled()  # the reasons count rows without empty ones
    theirs = (draft or newest) if isinstance(problem, Conflict) else None
    shown, reasons = views.typed_preview(form)
    return page(
        request,
        "rubrics/page.html",
        status=problem.status if problem else 200,
        form=form,
        focus=focus,
        errors=problem.reasons if isinstance(problem, RubricRefused) else {},
        shown=shown,
        reasons=reasons,
        draft=draft,
        editor=queries.user_name(session, draft.edited_by) if draft else None,
        has_quiz=any(row.rubric.quiz for row in versions),
        unsaved=sent is not None,
        theirs=comparing.compare(theirs, form) if theirs else None,
        versions=versions,
        newest=newest,
        not_begun=queries.not_begun(session, project.id, COUNT_LIMIT),
        count_limit=COUNT_LIMIT,
        problem=problem,
        scale_name=views.scale_name,
        **views.EDITOR,
    )
