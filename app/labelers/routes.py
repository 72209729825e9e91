"""The labelers of a project: who needs attention and why, one labeler, pauses, removals and groups."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response

from app.access.guards import AdminDep, ProjectDep, StaffDep
from app.cache import Cache, Computed
from app.db import SessionDep
from app.documents import LabelingSettings
from app.domain import scale
from app.domain.labelers import figures
from app.errors import PrefloopError
from app.labelers import group_queries, queries, service, views
from app.labelers.forms import GroupForm, LabelersFilter, MembersForm, PauseForm, RemoveForm
from app.limits import FormRoute
from app.models import Project, User
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/labelers", route_class=FormRoute)

PAGE = 100


def _url(project: Project, *path: object) -> str:
    return "/".join((f"/projects/{project.slug}/labelers", *map(str, path)))


@router.get("")
def listing(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: Annotated[LabelersFilter, Query()],
) -> Response:
    settings = LabelingSettings.model_validate(project.labeling)
    found = _overview(request, session, project, staff)
    return page(
        request,
        "labelers/list.html",
        listing=views.listing(found.value, settings.calibration, wanted.kind),
        counted_at=found.at,
        fitted=found.value.fitted,
        method=settings.consensus,
        kind_names=views.KINDS,
        number=wanted.page,
        size=PAGE,
    )


@router.get("/attention")
def attention(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    """Show only the labelers who need attention, for the project's start page."""
    settings = LabelingSettings.model_validate(project.labeling)
    found = _overview(request, session, project, staff).value
    return page(request, "labelers/_attention.html", listing=views.listing(found, settings.calibration, None))


def _overview(request: Request, session: SessionDep, project: Project, user: User) -> Computed[service.Overview]:
    """Return figures of all labelers, cached for a short while for all viewers; recomputed after the user's own
    changes."""
    cache: Cache[service.Overview] = request.app.state.labelers_overviews
    since = service.changed_at(session, project, user)
    return cache.get(project.id, lambda: service.overview(session, project), since)


@router.post("/refit")
def refit(staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    service.refit(session, project)
    return redirect(_url(project))


@router.get("/groups")
def groups(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep) -> Response:
    return _groups(request, project, session)


def _groups(
    request: Request, project: Project, session: SessionDep, error: PrefloopError | None = None, name: str = ""
) -> Response:
    return page(
        request,
        "labelers/groups.html",
        status=error.status if error else 200,
        groups=group_queries.groups(session, project.id),
        people=group_queries.active_labelers(session, project.id),
        error=error,
        name=name,
    )


@router.post("/groups")
def add_group(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[GroupForm, Form()]
) -> Response:
    try:
        service.add_group(session, project, admin, form.name)
    except PrefloopError as error:
        return _groups(request, project, session, error, form.name)
    return redirect(_url(project, "groups"))


@router.post("/groups/{group_id}/members")
def add_members(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    group_id: int,
    form: Annotated[MembersForm, Form()],
) -> Response:
    try:
        service.add_members(session, project, admin, group_id, form.labeler_ids)
    except PrefloopError as error:
        return _groups(request, project, session, error)
    return redirect(_url(project, "groups"))


@router.post("/groups/{group_id}/members/{labeler_id}/remove")
def remove_member(
    admin: AdminDep, project: ProjectDep, session: SessionDep, group_id: int, labeler_id: int
) -> Response:
    service.remove_member(session, project, admin, group_id, labeler_id)
    return redirect(_url(project, "groups"))


@router.post("/groups/{group_id}/delete")
def delete_group(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, group_id: int
) -> Response:
    try:
        service.delete_group(session, project, admin, group_id)
    except PrefloopError as error:
        return _groups(request, project, session, error)
    return redirect(_url(project, "groups"))


@router.get("/{labeler_id}")
def detail(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, labeler_id: int) -> Response:
    return _detail(request, project, session, labeler_id)


def _detail(
    request: Request,
    project: Project,
    session: SessionDep,
    labeler_id: int,
    error: PrefloopError | None = None,
    message: str = "",
) -> Response:
    settings = LabelingSettings.model_validate(project.labeling)
    labeler, row = _row(request, project, session, labeler_id)
    read = queries.judged(session, project.id, of_labeler=labeler_id)
    i = read.index_of(labeler_id)
    own = figures(read.judged, len(read.labeler_ids), weeks=26)
    mine = [] if i is None else read.comparison_ids[read.judged.comparison[read.judged.labeler == i]].tolist()
    return page(
        request,
        "labelers/detail.html",
        status=error.status if error else 200,
        row=row,
        weeks=[] if i is None else views.weeks(own, i),
        slices=[] if i is None else views.slices(read, i, queries.tags(session, mine)),
        words=scale.words,
        judgments=queries.last_judgments(session, project.id, labeler_id),
        history=queries.history(session, project.id, labeler_id),
        groups=group_queries.groups_of(session, project.id, labeler_id),
        by_project=queries.by_project(session, labeler_id, request.state.user.id),
        uses=service.uses(session, project, labeler_id),
        has_written=any(service.written(session, project, labeler_id)),
        own_seen=", ".join(["their count", *(name for name, shown in settings.own_figures if shown)]),
        error=error,
        message=message,
        labeler=labeler,
    )


def _row(request: Request, project: Project, session: SessionDep, labeler_id: int) -> tuple[queries.Labeler, views.Row]:
    """Return the labeler with the figures of the list, which compares them with others of their kind."""
    labeler = service.find(session, project, labeler_id)
    settings = LabelingSettings.model_validate(project.labeling)
    found = _overview(request, session, project, request.state.user).value
    others = [each for each in found.labelers if each.id != labeler_id]
    if len(others) == len(found.labelers):  # the labeler joined after the figures were computed
        found = service.overview(session, project)
    else:  # the state of the labeler must be current
        found = found._replace(labelers=[*others, labeler])
    rows = views.listing(found, settings.calibration, labeler.kind).rows
    return labeler, next(row for row in rows if row.labeler.id == labeler_id)


@router.post("/{labeler_id}/pause")
def pause(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    labeler_id: int,
    form: Annotated[PauseForm, Form()],
) -> Response:
    service.find(session, project, labeler_id)
    try:
        service.pause(session, project, admin, labeler_id, form.message)
    except PrefloopError as error:
        return _detail(request, project, session, labeler_id, error, form.message)
    return redirect(_url(project, labeler_id))


@router.post("/{labeler_id}/resume")
def resume(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, labeler_id: int) -> Response:
    service.find(session, project, labeler_id)
    try:
        service.resume(session, project, admin, labeler_id)
    except PrefloopError as error:
        return _detail(request, project, session, labeler_id, error)
    return redirect(_url(project, labeler_id))


@router.get("/{labeler_id}/remove")
def removal(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, labeler_id: int) -> Response:
    """Show what a removal would change, and what it cannot change, before it is done."""
    return _removal(request, project, session, labeler_id)


def _removal(
    request: Request,
    project: Project,
    session: SessionDep,
    labeler_id: int,
    error: PrefloopError | None = None,
    reason: str = "",
) -> Response:
    return page(
        request,
        "labelers/remove.html",
        status=error.status if error else 200,
        labeler=service.find(session, project, labeler_id),
        affected=service.removal(session, project, labeler_id),
        written=service.written(session, project, labeler_id),
        uses=service.uses(session, project, labeler_id),
        error=error,
        reason=reason,
    )


@router.post("/{labeler_id}/remove")
def remove(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    labeler_id: int,
    form: Annotated[RemoveForm, Form()],
) -> Response:
    service.find(session, project, labeler_id)
    try:
        service.remove(session, project, admin, labeler_id, form.reason, with_written=form.with_written)
    except PrefloopError as error:
        return _removal(request, project, session, labeler_id, error, form.reason)
    return redirect(_url(project, labeler_id))


@router.post("/{labeler_id}/withdraw-written")
def withdraw_written(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    labeler_id: int,
    form: Annotated[RemoveForm, Form()],
) -> Response:
    """Withdraw what a labeler wrote whose removal did not include it."""
    service.find(session, project, labeler_id)
    try:
        service.withdraw_written(session, project, admin, labeler_id, form.reason)
    except PrefloopError as error:
        return _removal(request, project, session, labeler_id, error, form.reason)
    return redirect(_url(project, labeler_id))
