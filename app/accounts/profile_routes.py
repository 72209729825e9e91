"""One's own profile: the name that others see, the password, and the browsers one is signed in with."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from app.access.sessions import SESSION_COOKIE, UserDep, signed_in_as
from app.accounts import attempts, queries, service
from app.accounts.forms import NameForm, PasswordForm
from app.accounts.hashing import Hashes
from app.accounts.routes import begin_session
from app.db import SessionDep
from app.errors import PrefloopError
from app.limits import FormRoute
from app.models import User
from app.render import page, redirect

router = APIRouter(prefix="/profile", route_class=FormRoute)

SAVED = {
    "name": "Your name is saved.",
    "password": "Your password is changed. Other browsers are signed out.",
    "sessions": "All other browsers are signed out.",
}


@router.get("")
def show(request: Request, user: UserDep, session: SessionDep, saved: str = "") -> Response:
    return _page(request, session, user, saved=SAVED.get(saved, ""))


@router.post("")
def rename(request: Request, user: UserDep, session: SessionDep, form: Annotated[NameForm, Form()]) -> Response:
    try:
        service.rename(session, user, form.name)
    except PrefloopError as error:
        return _page(request, session, user, error=error)
    return redirect("/profile?saved=name")


@router.post("/password", dependencies=[Hashes])
def change_password(
    request: Request, user: UserDep, session: SessionDep, form: Annotated[PasswordForm, Form()]
) -> Response:
    """Sets a new password for whoever knows the current one, and signs this browser in again."""
    email, key = user.email or "", request.app.state.settings.signing_key
    browser = attempts.known_browser(key, email, request.cookies.get(attempts.BROWSER_COOKIE))
    place = attempts.place_of(request.client.host if request.client else "", browser)
    try:
        # In a transaction of its own, as for a sign-in: whoever finds an open browser must not try passwords.
        with request.app.state.session_factory.begin() as counting:
            attempts.count(counting, email, place)
        service.change_password(session, user, form.current, form.new)
    except PrefloopError as error:
        return _page(request, session, user, error=error)
    return begin_session(request, session, user, "/profile?saved=password")


@router.post("/sessions/end")
def end_sessions(request: Request, user: UserDep, session: SessionDep) -> Response:
    service.end_other_sessions(session, user, request.cookies.get(SESSION_COOKIE, ""))
    return redirect("/profile?saved=sessions")


def _page(
    request: Request, session: Session, user: User, *, saved: str = "", error: PrefloopError | None = None
) -> Response:
    return page(
        request,
        "accounts/profile.html",
        status=error.status if error else 200,
        sessions=queries.sessions_of(session, user.id),
        this=signed_in_as(request),
        saved=saved,
        error=error,
    )
