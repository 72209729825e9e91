"""Sign in and out, one-time links, and the people page."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from app.accounts import access, attempts, queries, service
from app.accounts.forms import InviteForm, RedeemForm, RolesForm, SignInForm
from app.db import SessionDep
from app.errors import InvalidInput, NotFound, PrefloopError
from app.limits import FormRoute
from app.models import User
from app.models.user import ROLES
from app.render import page, redirect

router = APIRouter(route_class=FormRoute)


@router.get("/sign-in")
def sign_in_page(request: Request, user: access.VisitorDep, next: str = "/") -> Response:
    if user is not None:
        return redirect(_local(next))
    return page(request, "accounts/sign_in.html", next=_local(next), email="", error=None)


@router.post("/sign-in", dependencies=[access.Hashes])
def sign_in(request: Request, session: SessionDep, form: Annotated[SignInForm, Form()]) -> Response:
    email, key = service.normal_email(form.email), request.app.state.settings.signing_key
    browser = attempts.known_browser(key, email, request.cookies.get(access.BROWSER_COOKIE))
    place = attempts.place_of(request.client.host if request.client else "", browser)
    try:
        # In a transaction of its own, before the request's has begun: other attempts see it while this one is checked.
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
    return _start(request, session, found, _local(form.next))


def _sign_in(request: Request, form: SignInForm, error: PrefloopError) -> Response:
    context = {"next": _local(form.next), "email": form.email, "error": error}
    return page(request, "accounts/sign_in.html", status=error.status, **context)


@router.post("/sign-out")
def sign_out(request: Request, session: SessionDep) -> Response:
    if token := request.cookies.get(access.SESSION_COOKIE):
        service.close_session(session, token)
    response = redirect("/sign-in")
    response.delete_cookie(access.SESSION_COOKIE)
    return response


@router.get("/join/{token}")
def join_page(request: Request, user: access.VisitorDep, session: SessionDep, token: str) -> Response:
    link = service.open_link(session, token)
    known = session.get(User, link.user_id) if link.user_id else None
    return page(request, "accounts/join.html", link=link, known=known, form=RedeemForm(), error=None)


@router.post("/join/{token}", dependencies=[access.Hashes])
def join(
    request: Request, user: access.VisitorDep, session: SessionDep, token: str, form: Annotated[RedeemForm, Form()]
) -> Response:
    link = service.open_link(session, token)
    try:
        with session.begin_nested():
            joined = service.redeem_link(session, token, email=form.email, name=form.name, password=form.password)
    except PrefloopError as error:
        known = session.get(User, link.user_id) if link.user_id else None
        context = {"link": link, "known": known, "form": form, "error": error}
        return page(request, "accounts/join.html", status=error.status, **context)
    return _start(request, session, joined, "/")


@router.get("/people")
def people(request: Request, admin: access.AdminDep, session: SessionDep) -> Response:
    return _people(request, session)


@router.post("/people/invite")
def invite(
    request: Request, admin: access.AdminDep, session: SessionDep, form: Annotated[InviteForm, Form()]
) -> Response:
    """Shows the link on the page that answers: only its hash is stored, so it cannot be shown again."""
    days = request.app.state.settings.link_days
    try:
        token = service.create_link(session, roles=list(form.roles), created_by=admin.id, days=days, kind=form.kind)
    except PrefloopError as error:
        return _people(request, session, error=error, invited=form)
    return _with_link(request, session, token, f"invites someone as {', '.join(form.roles)}")


@router.post("/people/links/{link_id}/revoke")
def revoke(request: Request, admin: access.AdminDep, session: SessionDep, link_id: int) -> Response:
    try:
        service.revoke_link(session, admin, link_id)
    except PrefloopError as error:
        return _people(request, session, error=error)
    return redirect("/people")


@router.post("/people/{user_id}/reset")
def reset(request: Request, admin: access.AdminDep, session: SessionDep, user_id: int) -> Response:
    user = _person(session, user_id)
    days = request.app.state.settings.link_days
    token = service.create_link(session, roles=[], created_by=admin.id, days=days, user_id=user.id)
    return _with_link(request, session, token, f"lets {user.name} set a new password")


@router.post("/people/{user_id}")
def change(
    request: Request, admin: access.AdminDep, session: SessionDep, user_id: int, form: Annotated[RolesForm, Form()]
) -> Response:
    user = _person(session, user_id)
    try:
        service.set_roles(session, admin, user, list(form.roles), is_active=form.is_active)
    except PrefloopError as error:
        return _people(request, session, error=error, changed={user.id: form})
    return redirect("/people")


def _with_link(request: Request, session: SessionDep, token: str, purpose: str) -> Response:
    session.flush()
    url = f"{request.app.state.settings.url}/join/{token}"
    return _people(request, session, invitation={"url": url, "purpose": purpose})


def _people(
    request: Request,
    session: SessionDep,
    *,
    invitation: dict[str, str] | None = None,
    error: PrefloopError | None = None,
    invited: InviteForm = InviteForm(roles=["labeler"]),
    changed: dict[int, RolesForm] | None = None,
) -> Response:
    """The people page; with what was chosen where that was refused: `invited`, or by person's id `changed`."""
    found = queries.people(session)
    return page(
        request,
        "accounts/people.html",
        status=error.status if error else 200,
        people=found,
        names={person.id: person.name for person in found},
        links=queries.open_links(session),
        roles=ROLES,
        invitation=invitation,
        error=error,
        invited=invited,
        changed=changed or {},
    )


def _person(session: SessionDep, user_id: int) -> User:
    user = session.get(User, user_id)
    if user is None or user.email is None:
        raise NotFound("There is no such person.", "They may be listed under another name on the people page.")
    return user


def _start(request: Request, session: SessionDep, user: User, url: str) -> Response:
    days = request.app.state.settings.session_days
    response = redirect(url)
    token = service.open_session(session, user, days)
    access.set_cookie(request, response, access.SESSION_COOKIE, token, max_age=days * 86400)
    known = attempts.remembrance(request.app.state.settings.signing_key, user.email or "")
    access.set_cookie(request, response, access.BROWSER_COOKIE, known, max_age=365 * 86400)
    return response


def _local(url: str) -> str:
    """The address to go on to, only within this site: `//host` and `/\\host` lead elsewhere."""
    inside = url.startswith("/") and not url.startswith(("//", "/\\"))
    return url if inside else "/"
