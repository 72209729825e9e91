"""The page of a project's members."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response

from app.access import queries
from app.access.guards import AdminDep, ProjectDep
from app.accounts import queries as account_queries
from app.accounts import service as accounts
from app.accounts.forms import ListFilter
from app.db import SessionDep
from app.errors import PrefloopError
from app.limits import FormRoute
from app.members import service
from app.members.forms import AddForm, LinkForm, RolesForm
from app.models import Project
from app.models.member import ROLES
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/members", route_class=FormRoute)


WantedDep = Annotated[ListFilter, Query()]


def _url(project: Project, wanted: ListFilter = ListFilter()) -> str:
    return f"/projects/{project.slug}/members{wanted.query()}"


@router.get("")
def listing(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, wanted: WantedDep) -> Response:
    return _page(request, project, session, wanted=wanted)


@router.post("")
def add(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[AddForm, Form()]
) -> Response:
    """Add somebody who has an account."""
    try:
        service.add(session, project, admin, form.email, form.roles)
    except PrefloopError as error:
        return _page(request, project, session, error, added=form)
    return redirect(_url(project))


@router.post("/invite")
def invite(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[LinkForm, Form()]
) -> Response:
    """Show the link on the resulting page. Only its hash is stored, so it cannot be shown again."""
    settings = request.app.state.settings
    try:
        token = accounts.create_link(
            session, created_by=admin.id, days=settings.link_days, project_id=project.id, **form.model_dump()
        )
    except PrefloopError as error:
        return _page(request, project, session, error, invited=form)
    session.flush()
    invitation = {"url": f"{settings.url}/join/{token}", "purpose": f"invites someone as {', '.join(form.roles)}"}
    return _page(request, project, session, invitation=invitation)


@router.post("/links/{link_id}/revoke")
def revoke(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, link_id: int) -> Response:
    try:
        accounts.revoke_link(session, admin, link_id, project.id)
    except PrefloopError as error:
        return _page(request, project, session, error)
    return redirect(_url(project))


@router.post("/{user_id}")
def change(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    user_id: int,
    form: Annotated[RolesForm, Form()],
    wanted: WantedDep,
) -> Response:
    try:
        service.set_roles(session, project, admin, user_id, form.roles)
    except PrefloopError as error:
        return _page(request, project, session, error, changed={user_id: form.roles}, wanted=wanted)
    if user_id == admin.id and "admin" not in form.roles:
        return redirect(f"/projects/{project.slug}")  # they may no longer see this page
    return redirect(_url(project, wanted))


@router.post("/{user_id}/remove")
def remove(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, user_id: int, wanted: WantedDep
) -> Response:
    try:
        service.remove(session, project, admin, user_id)
    except PrefloopError as error:
        return _page(request, project, session, error, wanted=wanted)
    return redirect("/") if admin.id == user_id else redirect(_url(project, wanted))


def _page(
    request: Request,
    project: Project,
    session: SessionDep,
    error: PrefloopError | None = None,
    *,
    wanted: ListFilter = ListFilter(),
    added: AddForm = AddForm(roles=["labeler"]),
    invited: LinkForm = LinkForm(roles=["labeler"]),
    changed: dict[int, Any] | None = None,
    invitation: dict[str, str] | None = None,
) -> Response:
    """Show the page; after a refusal with the form's values: `added`, `invited`, or `changed` by member's id."""
    members, found = queries.members(session, project.id, wanted.text, wanted.page)
    return page(
        request,
        "members/page.html",
        status=error.status if error else 200,
        members=members,
        found=found,
        size=queries.PAGE,
        wanted=wanted,
        links=account_queries.open_links(session, project.id),
        all_roles=ROLES,
        error=error,
        added=added,
        invited=invited,
        changed=changed or {},
        invitation=invitation,
    )
