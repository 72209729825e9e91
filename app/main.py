"""The web service: `create_app(settings, database_url)`."""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Scope

from app import scratch
from app.access.sessions import verify_csrf
from app.accounts.profile_routes import router as profile
from app.accounts.routes import router as accounts
from app.addresses import AddressCheck
from app.artifacts import ArtifactStore
from app.assignments.routes import router as assignments
from app.automatic.routes import router as automatic
from app.cache import Cache
from app.calibration.routes import router as calibration
from app.comparisons.routes import router as comparisons
from app.constitution.routes import router as constitution
from app.datasets.routes import router as datasets
from app.db import Limits, make_engine, make_session_factory, unhurried
from app.demonstrations.routes import router as demonstrations
from app.errors import Conflict, InvalidInput, NotFound, NotSignedIn, PrefloopError, StorageFull, Unavailable
from app.form_fields import not_accepted
from app.headers import AnswerHeaders
from app.insights.routes import router as insights
from app.judges.routes import router as judges
from app.labelers.routes import router as labelers
from app.labeling.routes import router as labeling
from app.leaderboard.routes import router as leaderboard
from app.lineage.routes import router as lineage
from app.members.routes import router as members
from app.monitors.routes import router as monitors
from app.playground.routes import router as playground
from app.progress.routes import router as progress
from app.projects.routes import router as projects
from app.prompts.routes import router as prompts
from app.qualification.routes import router as qualification
from app.red_team.routes import router as red_team
from app.render import ROOT, page, redirect
from app.render_processes import processes
from app.review.routes import router as review
from app.rounds.routes import router as rounds
from app.rubrics.routes import router as rubrics
from app.settings import Settings
from app.suites.routes import router as suites
from app.thumbs.routes import router as thumbs
from app.trail.routes import router as trail

log = logging.getLogger(__name__)

ROUTERS: tuple[APIRouter, ...] = (
    accounts,
    profile,
    projects,
    members,
    labeling,
    rubrics,
    qualification,
    prompts,
    comparisons,
    review,
    insights,
    labelers,
    assignments,
    calibration,
    datasets,
    rounds,
    automatic,
    progress,
    monitors,
    suites,
    judges,
    constitution,
    playground,
    lineage,
    leaderboard,
    demonstrations,
    red_team,
    thumbs,
    trail,
)

# Routers that read and write whole projects.
UNHURRIED = (datasets,)


class Service(FastAPI):
    """FastAPI with our headers around everything: its last-resort error page is outside every middleware."""

    def build_middleware_stack(self) -> ASGIApp:
        return AnswerHeaders(super().build_middleware_stack(), https=self.state.settings.secure_cookies)


def create_app(settings: Settings, database_url: str) -> FastAPI:
    """Build the app. Nothing is connected until the first request."""
    engine = make_engine(
        database_url, limits=Limits(settings.statement_seconds, settings.lock_seconds, settings.idle_seconds)
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        scratch.remove_left_behind()
        threading.Thread(target=processes.start_one, name="render", daemon=True).start()
        yield
        engine.dispose()

    app = Service(title="Prefloop", lifespan=lifespan, dependencies=[Depends(verify_csrf)], openapi_url=None)
    app.state.settings = settings
    app.state.session_factory = make_session_factory(engine)
    app.state.store = ArtifactStore(settings.artifacts_root, settings.outside_models)
    # At most 30 of the 40 threads for all three together, so that labelers have the rest.
    app.state.agreement_tables = Cache(at_once=10)
    app.state.labelers_overviews = Cache(at_once=10)
    app.state.leaderboards = Cache(at_once=10)
    app.state.available_to_rounds = Cache(worth_keeping=0.05)  # requested on every change of the form of a new round
    # These two are requested every few seconds by each open start page.
    app.state.newest_looks = Cache(worth_keeping=0.05)
    app.state.project_counts = Cache(worth_keeping=0.05)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        """Return 200 if the service can serve: the database answers."""
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return PlainTextResponse("ok")

    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(unhurried)] if router in UNHURRIED else None)
    app.mount("/static", Static(directory=ROOT / "static"), name="static")
    app.add_middleware(AddressCheck, show=_show_error)
    app.add_exception_handler(PrefloopError, _show_error)
    app.add_exception_handler(RequestValidationError, _show_invalid)
    app.add_exception_handler(HTTPException, _show_http_error)
    app.add_exception_handler(DataError, _show_not_storable)
    app.add_exception_handler(IntegrityError, _show_sent_twice)
    app.add_exception_handler(OperationalError, _show_unavailable)
    app.add_exception_handler(InternalError, _show_unavailable)
    app.add_exception_handler(TimeoutError, _show_unavailable)
    app.add_exception_handler(OSError, _show_no_room)
    app.add_exception_handler(Exception, _show_unexpected)
    return app


class Static(StaticFiles):
    """Static files. Browsers keep those that pages name by version for good, and revalidate those that scripts name."""

    def file_response(
        self, full_path: Any, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        versioned = b"v=" in scope["query_string"]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if versioned else "no-cache"
        return response


def _show_error(request: Request, error: Exception) -> Response:
    """Show an error as JSON for programs, as a fragment for htmx (shown in #messages), or as a page."""
    assert isinstance(error, PrefloopError)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": error.message, "advice": error.advice}, error.status)
    if "HX-Request" in request.headers:
        return page(request, "errors/_message.html", status=error.status, error=error)
    if isinstance(error, NotSignedIn) and request.method == "GET":
        query = f"?{request.url.query}" if request.url.query else ""
        return redirect(f"/sign-in?next={quote(f'{request.url.path}{query}')}")
    came_from = _came_from(request) if error.is_signed_out else ""
    return page(request, "errors/page.html", status=error.status, error=error, came_from=came_from)


def _came_from(request: Request) -> str:
    """Return the page that a form was on, within this site; the start page if the browser does not say."""
    try:
        said = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return "/"
    if said.netloc != request.headers.get("host"):
        return "/"
    inside = said.path.lstrip("/\\")  # never to another host
    return f"/{inside}?{said.query}" if said.query else f"/{inside}"


def _show_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _show_error(
        request, not_accepted({".".join(map(str, each["loc"][1:])): each["msg"] for each in error.errors()[:5]})
    )


def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _show_error(
            request, NotFound("There is no such page.", "Check the address, or begin at the start page.")
        )
    if error.status_code == 405 and request.method == "GET":
        # Happens when the response to a form is opened again by its address.
        shown = PrefloopError("This address only accepts forms; it has no page.", "Go on from the start page.")
    else:
        shown = PrefloopError(str(error.detail), "Go back and try again.")
    shown.status = error.status_code
    return _show_error(request, shown)


def _show_not_storable(request: Request, error: Exception) -> Response:
    """Show values that forms do not check for: a number beyond the database's integers, or a NUL character in a text.

    Any other refusal is a bug.
    """
    assert isinstance(error, DataError)
    if _sqlstate(error) not in NOT_STORABLE and "NUL" not in str(error.orig):
        return _show_unexpected(request, error)
    log.info("%s %s was refused by the database: %s", request.method, request.url.path, error)
    advice = "Check the address, the numbers and any pasted text for unusual characters, and send it again."
    return _show_error(request, InvalidInput("A number is too large, or a character cannot be stored.", advice))


def _show_sent_twice(request: Request, error: Exception) -> Response:
    """Show that a form's key came twice at the same moment, so that both requests found no earlier one.

    The constraint refused the second one. Any other refusal is a bug.
    """
    assert isinstance(error, IntegrityError)
    constraint = error.orig.diag.constraint_name if isinstance(error.orig, psycopg.Error) else None
    if not (constraint or "").endswith("_idempotency_key"):
        return _show_unexpected(request, error)
    return _show_error(
        request,
        Conflict("This form was sent twice at the same moment, and was saved once.", "Open the page again."),
    )


def _sqlstate(error: DBAPIError) -> str:
    """Return PostgreSQL's error code; '' if the driver itself failed."""
    return getattr(error.orig, "sqlstate", None) or ""


# Numeric value out of range; character not in the encoding; character without a counterpart there.
NOT_STORABLE = ("22003", "22021", "22P05")
# What the database could not do and what would help, by the beginning of the error code.
REFUSED = {
    "53100": (
        "The database's disk is full.",
        "Tell the person who runs the service: nothing can be saved until there is space.",
    ),
    "53300": ("The database has no free connection right now.", "Wait a few seconds and send it again."),
    "53": ("The database has too little memory or disk for this.", "Tell the person who runs the service."),
    "40": ("Somebody else changed the same thing at the same moment.", "Send it again."),
    "55P03": (
        "Somebody else is changing the same thing right now, and the wait took too long.",
        "Wait a few seconds and send it again.",
    ),
    "57014": (
        "This took the database too long, so it was stopped.",
        "Wait a minute and send it again. If that does not help, tell the person who runs the service: "
        "PREFLOOP_STATEMENT_SECONDS sets how long it may take.",
    ),
    "25P03": ("This took too long, so the database undid it.", "Wait a minute and send it again."),
}
UNREACHABLE = ("The database cannot be reached right now.", "Wait a few seconds and send it again.")


def _show_unavailable(request: Request, error: Exception) -> Response:
    code = _sqlstate(error) if isinstance(error, DBAPIError) else ""
    if isinstance(error, InternalError) and not code.startswith(tuple(REFUSED)):
        return _show_unexpected(request, error)
    log.warning("The database did not answer %s %s: %s", request.method, request.url.path, error)
    message, then = next((told for begin, told in REFUSED.items() if code.startswith(begin)), UNREACHABLE)
    # htmx leaves the form as it is. Without it, an error page replaces the form, and going back would load an empty
    # form. Our scripts keep what they send, and tell people what to do.
    if "application/json" in request.headers.get("accept", ""):
        advice = then
    elif "HX-Request" in request.headers:
        advice = f"Nothing was lost: what you typed is still in the form. {then}"
    elif request.method == "GET":
        advice = then.replace("send it again", "reload this page")
    else:
        advice = f"Nothing was lost: if you reload this page, it sends what you typed again. {then}"
    return _show_error(request, Unavailable(message, advice))


def _show_no_room(request: Request, error: Exception) -> Response:
    """Show that the disk is full for temporary files of a request: uploads, and files to download."""
    assert isinstance(error, OSError)
    if error.errno != errno.ENOSPC:
        return _show_unexpected(request, error)
    log.warning("%s %s found the disk full", request.method, request.url.path)
    advice = "Tell the person who runs the service: its folder for temporary files needs space. Then send it again."
    return _show_error(request, StorageFull("The service's disk is full.", advice))


def _show_unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    shown = PrefloopError("Something went wrong on our side.", "The details are in the service's log. Try again.")
    shown.status = 500
    return _show_error(request, shown)
