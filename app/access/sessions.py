"""Sign-ins: who sends a request, and whether its form came from one of our pages."""

import hashlib
import hmac
import secrets
from typing import Annotated

from fastapi import Depends, Request, Response

from app.access import queries
from app.db import SessionDep
from app.errors import OldForm
from app.models import User

SESSION_COOKIE = "prefloop_session"
VISITOR_COOKIE = "prefloop_visitor"
CSRF_FIELD = "csrf_token"
CSRF_HEADER = "X-CSRF-Token"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def hash_token(token: str) -> str:
    """Return what the database keeps of a secret token: its SHA-256. The token is random, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def csrf_token(request: Request) -> str:
    """Return the token for our forms: an HMAC of the sign-in's cookie, or of the visitor's cookie if nobody is signed
    in."""
    cookie = request.cookies.get(SESSION_COOKIE) or request.cookies.get(VISITOR_COOKIE)
    if cookie is None:
        # `remember_visitor` sets the cookie on the response.
        cookie = request.state.new_visitor = getattr(request.state, "new_visitor", None) or secrets.token_urlsafe(16)
    return hmac.new(request.app.state.settings.signing_key, f"csrf:{cookie}".encode(), hashlib.sha256).hexdigest()


def remember_visitor(request: Request, response: Response) -> None:
    if visitor := getattr(request.state, "new_visitor", None):
        set_cookie(request, response, VISITOR_COOKIE, visitor, max_age=None)


def set_cookie(request: Request, response: Response, name: str, value: str, max_age: int | None) -> None:
    secure = request.app.state.settings.secure_cookies
    response.set_cookie(name, value, max_age=max_age, httponly=True, samesite="lax", secure=secure)


async def verify_csrf(request: Request) -> None:
    """Refuse an unsafe request whose form (or htmx header) does not carry our token. Applied to the whole app."""
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


def signed_in_as(request: Request) -> str | None:
    """Return the hash of the request's sign-in token; None if it has none."""
    token = request.cookies.get(SESSION_COOKIE)
    return hash_token(token) if token else None


def visitor(request: Request, session: SessionDep) -> User | None:
    """Return the signed-in user, or None, on routes that anybody may use. Also store it on the request
    for templates."""
    token_hash = signed_in_as(request)
    request.state.user = queries.user_by_session(session, token_hash) if token_hash else None
    return request.state.user


VisitorDep = Annotated[User | None, Depends(visitor)]


async def signed_in(request: Request) -> User:
    """Return the signed-in user, whom `app.access.guards.ask` has looked up."""
    user: User = request.state.user
    return user


UserDep = Annotated[User, Depends(signed_in)]
