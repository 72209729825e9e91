"""Sign in and out, one-time links, and the people page."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response

from app.access import members
from app.access.guards import AdministratorDep
from app.access.queries import PAGE
from app.access.sessions import SESSION_COOKIE, VisitorDep, set_cookie
from app.accounts import attempts, queries, service
from app.accounts.forms import AccountForm, InviteForm, ListFilter, PlaceForm, RedeemForm, SignInForm
from app.accounts.hashing import Hashes
from app.db import SessionDep
from app.errors import InvalidInput, NotFound, PrefloopError
from app.limits import FormRoute
from app.models import Project, SigninLink, User
from app.models.member import ROLES
from app.render import page, redirect

router = APIRouter(route_class=FormRoute)

WantedDep = Annotated[ListFilter, Query()]


@router.get("/sign-in")
def sign_in_page(request: Request, user: VisitorDep, next: str = "/") -> Response:
    if user is not None:
        return redirect(_local(next))
    return page(request, "accounts/sign_in.html", next=_local(next), email="", error=None)


@router.post("/sign-in", dependencies=[Hashes])
def sign_in(request: Request, session: SessionDep, form: Annotated[SignInForm, Form()]) -> Response:
    email, key = service.normal_email(form.email), request.app.state.settings.signing_key
    browser = attempts.known_browser(key, email, request.cookies.get(attempts.BROWSER_COOKIE))
    place = attempts.place_of(request.client.host if request.client else "", browser)
    try:
        # In a transaction of its own, before the request's begins: other attempts see it while this one is checked.
        with request.app.state.session_factory.begin() as counting:
            attempts.count(counting, email, place)
    except attempts.MustWait as error:
        response = _sign_in(request, form, error)
        response.headers["Retry-After"] = str(error.seconds)
        return response
    found = service.authenticate(session, email, form.password)
    if found is None:
        wrong = InvalidInput("No active account has this address and password.", "Check both and try again.")
        return _sign_in(request, form, wrong)
    attempts.forget(session, email, place)
    return begin_session(request, session, found, _local(form.next))


def _sign_in(request: Request, form: SignInForm, error: PrefloopError) -> Response:
    context = {"next": _local(form.next), "email": form.email, "error": error}
    return page(request, "accounts/sign_in.html", status=error.status, **context)


@router.post("/sign-out")
def sign_out(request: Request, session: SessionDep) -> Response:
    if token := request.cookies.get(SESSION_COOKIE):
        service.close_session(session, token)
    response = redirect("/sign-in")
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.get("/join/{token}")
def join_page(request: Request, user: VisitorDep, session: SessionDep, token: str) -> Response:
    return _join(request, session, user, service.open_link(session, token))


@router.post("/join/{token}", dependencies=[Hashes])
def join(
    request: Request, user: VisitorDep, session: SessionDep, token: str, form: Annotated[RedeemForm, Form()]
) -> Response:
    """Create the account, add to the account of whoever is signed in, or set the password of the user
    the link is for."""
    link = service.open_link(session, token)
    joins_as_they_are = user is not None and _invites(link)
    try:
        with session.begin_nested():
            if user is not None and joins_as_they_are:
                service.accept_link(session, token, user)
                joined = user
            else:
                joined = service.redeem_link(session, token, email=form.email, name=form.name, password=form.password)
    except PrefloopError as error:
        return _join(request, session, user, link, form, error)
    project = session.get(Project, link.project_id) if link.project_id else None
    to = f"/projects/{project.slug}" if project else "/"
    return redirect(to) if joins_as_they_are else begin_session(request, session, joined, to)


def _join(
    request: Request,
    session: SessionDep,
    user: User | None,
    link: SigninLink,
    form: RedeemForm = RedeemForm(),
    error: PrefloopError | None = None,
) -> Response:
    """Show what the link does; after a refusal, with the error and what was typed."""
    return page(
        request,
        "accounts/join.html",
        status=error.status if error else 200,
        link=link,
        invites_to=session.get(Project, link.project_id) if link.project_id else None,
        known=session.get(User, link.user_id) if link.user_id else None,
        joins_as_they_are=user is not None and _invites(link),
        form=form,
        error=error,
    )


def _invites(link: SigninLink) -> bool:
    """Tell whether somebody who has an account can use the link too."""
    return link.project_id is not None or link.is_admin


@router.get("/people")
def people(request: Request, admin: AdministratorDep, session: SessionDep, wanted: WantedDep) -> Response:
    return _people(request, session, wanted=wanted)


@router.post("/people/invite")
def invite(
    request: Request, admin: AdministratorDep, session: SessionDep, form: Annotated[InviteForm, Form()]
) -> Response:
    """Show the link on the resulting page. Only its hash is stored, so it cannot be shown again."""
    try:
        project = _project(session, form.project) if form.project else None
        token = service.create_link(
            session,
            created_by=admin.id,
            days=request.app.state.settings.link_days,
            project_id=project.id if project else None,
            **form.model_dump(exclude={"project"}),
        )
    except PrefloopError as error:
        return _people(request, session, error=error, invited=form)
    to = [f"as {', '.join(form.roles)} to {project.name}"] if project else []
    to += ["as an administrator"] if form.is_admin else []
    return _with_link(request, session, token, f"invites someone {' and '.join(to)}".rstrip())


@router.post("/people/members")
def put_into_project(
    request: Request, admin: AdministratorDep, session: SessionDep, form: Annotated[PlaceForm, Form()]
) -> Response:
    """Make somebody, perhaps the administrator, a member of a project; roles that they already have stay."""
    try:
        user = service.by_address(session, form.email)
        members.join(session, _project(session, form.project).id, user.id, form.roles, admin.id)
    except PrefloopError as error:
        return _people(request, session, error=error, placed=form)
    return redirect("/people")


@router.post("/people/links/{link_id}/revoke")
def revoke(request: Request, admin: AdministratorDep, session: SessionDep, link_id: int) -> Response:
    try:
        service.revoke_link(session, admin, link_id)
    except PrefloopError as error:
        return _people(request, session, error=error)
    return redirect("/people")


@router.post("/people/{user_id}/reset")
def reset(request: Request, admin: AdministratorDep, session: SessionDep, user_id: int, wanted: WantedDep) -> Response:
    user = _person(session, user_id)
    days = request.app.state.settings.link_days
    token = service.create_link(session, created_by=admin.id, days=days, user_id=user.id)
    return _with_link(request, session, token, f"lets {user.name} set a new password", wanted)


@router.post("/people/{user_id}")
def change(
    request: Request,
    admin: AdministratorDep,
    session: SessionDep,
    user_id: int,
    form: Annotated[AccountForm, Form()],
    wanted: WantedDep,
) -> Response:
    user = _person(session, user_id)
    try:
        service.set_account(session, admin, user, is_admin=form.is_admin, is_active=form.is_active)
    except PrefloopError as error:
        return _people(request, session, error=error, changed={user.id: form}, wanted=wanted)
    return redirect(f"/people{wanted.query()}")


def _with_link(
    request: Request, session: SessionDep, token: str, purpose: str, wanted: ListFilter = ListFilter()
) -> Response:
    session.flush()
    url = f"{request.app.state.settings.url}/join/{token}"
    return _people(request, session, invitation={"url": url, "purpose": purpose}, wanted=wanted)


def _people(
    request: Request,
    session: SessionDep,
    *,
    wanted: ListFilter = ListFilter(),
    invitation: dict[str, str] | None = None,
    error: PrefloopError | None = None,
    invited: InviteForm = InviteForm(),
    placed: PlaceForm = PlaceForm(roles=["labeler"]),
    changed: dict[int, AccountForm] | None = None,
) -> Response:
    """Show the people page; after a refusal with the form's values: `invited`, `placed`, or `changed` by
    person's id."""
    people, found = queries.people_named(session, wanted.text, wanted.page)
    return page(
        request,
        "accounts/people.html",
        status=error.status if error else 200,
        people=people,
        found=found,
        size=PAGE,
        wanted=wanted,
        places=queries.places(session, [person.id for person in people]),
        projects=queries.projects(session),
        links=queries.open_links(session),
        all_roles=ROLES,
        invitation=invitation,
        error=error,
        invited=invited,
        placed=placed,
        changed=changed or {},
    )


def _project(session: SessionDep, slug: str) -> Project:
    found = queries.project_by_slug(session, slug)
    if found is None:
        raise InvalidInput("No project is chosen.", "Choose one of the listed projects.")
    return found


def _person(session: SessionDep, user_id: int) -> User:
    user = session.get(User, user_id)
    if user is None or user.email is None:
        raise NotFound("There is no such person.", "The People page lists everybody.")
    return user


def begin_session(request: Request, session: SessionDep, user: User, url: str) -> Response:
    """Signs somebody in with this browser and sends them on."""
    days = request.app.state.settings.session_days
    response = redirect(url)
    token = service.open_session(session, user, days)
    set_cookie(request, response, SESSION_COOKIE, token, max_age=days * 86400)
    known = attempts.remembrance(request.app.state.settings.signing_key, user.email or "")
    set_cookie(request, response, attempts.BROWSER_COOKIE, known, max_age=365 * 86400)
    return response


def _local(url: str) -> str:
    """Return the address to go on to if it is within this site; `//host` and `/\\host` lead elsewhere."""
    inside = url.startswith("/") and not url.startswith(("//", "/\\"))
    return url if inside else "/"
