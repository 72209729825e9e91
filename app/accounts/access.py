"""Who is asking, may they, and did the form come from our page: dependencies of all routes."""

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from fastapi import Depends, Request, Response

from app.accounts import queries
from app.accounts.service import hash_token
from app.db import SessionDep
from app.errors import Forbidden, NotSignedIn, OldForm
from app.models import User

SESSION_COOKIE = "prefloop_session"
VISITOR_COOKIE = "prefloop_visitor"
BROWSER_COOKIE = "prefloop_browser"  # who has signed in here before: see app.accounts.attempts
CSRF_FIELD = "csrf_token"
CSRF_HEADER = "X-CSRF-Token"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def csrf_token(request: Request) -> str:
    """The token our forms carry: an HMAC of the sign-in's cookie, or of a visitor's where nobody is signed in."""
    cookie = request.cookies.get(SESSION_COOKIE) or request.cookies.get(VISITOR_COOKIE)
    if cookie is None:
        # Set on the response by `remember_visitor`.
        cookie = request.state.new_visitor = getattr(request.state, "new_visitor", None) or secrets.token_urlsafe(16)
    return hmac.new(request.app.state.settings.signing_key, f"csrf:{cookie}".encode(), hashlib.sha256).hexdigest()


def remember_visitor(request: Request, response: Response) -> None:
    if visitor := getattr(request.state, "new_visitor", None):
        set_cookie(request, response, VISITOR_COOKIE, visitor, max_age=None)


def set_cookie(request: Request, response: Response, name: str, value: str, max_age: int | None) -> None:
    secure = request.app.state.settings.secure_cookies
    response.set_cookie(name, value, max_age=max_age, httponly=True, samesite="lax", secure=secure)


async def verify_csrf(request: Request) -> None:
    """Refuses an unsafe request whose form (or htmx header) does not carry our token. Applied to the whole app."""
    if request.method in SAFE_METHODS:
        return
    sent = request.headers.get(CSRF_HEADER)
    if sent is None and "form" in request.headers.get("content-type", ""):
        value = (await request.form()).get(CSRF_FIELD)
        sent = value if isinstance(value, str) else None
    if sent is None or not hmac.compare_digest(sent.encode(), csrf_token(request).encode()):
        raise OldForm(
            "This form came from an old page: you may have signed in or out in another tab.",
            "Open the page again and send it once more.",
        )


def visitor(request: Request, session: SessionDep) -> User | None:
    """The signed-in user, or none. Also puts it on the request for the templates."""
    if getattr(request.state, "session", None) is session:
        return request.state.user  # asked already, before the form was parsed: app.limits
    token = request.cookies.get(SESSION_COOKIE)
    request.state.user = queries.user_by_session(session, hash_token(token)) if token else None
    return request.state.user


VisitorDep = Annotated[User | None, Depends(visitor)]


def signed_in(user: VisitorDep) -> User:
    if user is None:
        raise NotSignedIn("This page needs a sign-in.", "Sign in and you will come back here.")
    return user


UserDep = Annotated[User, Depends(signed_in)]


class HasRole:
    """Lets in people who have one of the roles."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

    def __call__(self, user: UserDep) -> User:
        if not set(self.roles) & set(user.roles):
            needed = " or ".join(self.roles)
            raise Forbidden(f"This page is for people with the role {needed}.", "An admin can give you that role.")
        return user


LabelerDep = Annotated[User, Depends(HasRole("labeler"))]
AdminDep = Annotated[User, Depends(HasRole("admin"))]
OperatorDep = Annotated[User, Depends(HasRole("operator"))]
StaffDep = Annotated[User, Depends(HasRole("admin", "operator"))]


# A password's hash takes 64 MB and a good part of a second, and visitors may ask for it.
HASHED_AT_ONCE = 2
_hashing: RunVar[CapacityLimiter] = RunVar("hashing")  # of the event loop


async def one_of_few() -> AsyncIterator[None]:
    """Lets a request that hashes a password wait for its turn, in none of the threads that serve everybody."""
    limiter = _hashing.get(None)
    if limiter is None:
        limiter = CapacityLimiter(HASHED_AT_ONCE)
        _hashing.set(limiter)
    async with limiter:
        yield


Hashes = Depends(one_of_few, scope="function")
