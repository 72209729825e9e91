"""Fixtures for all tests: a real PostgreSQL built by Alembic, an app on it, signed-in people, and a browser.

Each test process has one embedded server. Its tables are emptied after each test that used them. Factories make data.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests never depend on a hub

import contextlib
import gc
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from starlette.routing import BaseRoute

from app.access.sessions import SESSION_COOKIE
from app.accounts import service as accounts
from app.db import make_engine, make_session_factory
from app.main import create_app
from app.models import User
from app.postgres import database
from app.schema import migrate
from app.settings import Settings
from tests import factories
from tests.processes import start_worker

OUR_TABLES = """
    SELECT relname, pg_relation_size(oid) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
    AND relname NOT IN ('alembic_version', 'queue_migration')
"""
MANY_BYTES = 1 << 20  # size of a large table


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # the sort is stable


def pytest_collection_finish() -> None:
    # Exclude the hundreds of thousands of imported objects from garbage collection, because they stay anyway. Scanning
    # them took a third of the time of recipe tests, which collect garbage after each model.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    # Do not use tmp_path, because a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        settings = Settings(home=Path(folder), database_url=None, _env_file=None)
        with database(settings) as url:
            engine = make_engine(url)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                # Tests may lose their data if the machine fails; this halves their time.
                connection.execute(text("ALTER SYSTEM SET fsync = off"))
                connection.execute(text("ALTER SYSTEM SET synchronous_commit = off"))
                connection.execute(text("SELECT pg_reload_conf()"))
            engine.dispose()
            migrate(url)
            yield url


@pytest.fixture(scope="session")
def shared_engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def empty_database(shared_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database without a schema; the settings refer to it."""
    with shared_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE empty"))
        url = shared_engine.url.set(drivername="postgresql", database="empty").render_as_string(hide_password=False)
        monkeypatch.setenv("DATABASE_URL", url)
        yield url
        connection.execute(text("DROP DATABASE empty WITH (FORCE)"))


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The engine for one test; all tables are empty again afterwards."""
    factories.roster.clear()  # a test on a separate database may have left people here
    yield shared_engine
    factories.roster.clear()
    with shared_engine.begin() as connection:
        found = connection.execute(text(OUR_TABLES)).all()
        tables = ", ".join(f'"{name}"' for name, _ in found)
        # This waits for everybody who is still writing.
        connection.exec_driver_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
        if max(size for _, size in found) > MANY_BYTES:
            connection.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY")
            return
        # With few rows, DELETE takes a tenth of the time, because it creates no new files.
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # in any order
        connection.exec_driver_sql("; ".join(f'DELETE FROM "{name}"' for name, _ in found))
        connection.exec_driver_sql("SELECT setval(seqrelid, seqstart, false) FROM pg_sequence")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session for services and queries. Commit in the test if other sessions must see the data."""
    with make_session_factory(engine)() as session:
        yield session


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(
        home=tmp_path, database_url=database_url, secret_key="test", model_folders=str(tmp_path), _env_file=None
    )


@pytest.fixture
def run_worker(settings: Settings) -> Iterator[Callable[..., ForkServerProcess]]:
    """Return a function that starts a real worker. Workers that are alive after the test are killed; see worker.log."""
    started: list[ForkServerProcess] = []

    def start(url: str | None = None) -> ForkServerProcess:
        environment = {
            "DATABASE_URL": url or settings.database_url or "",
            "PREFLOOP_HOME": str(settings.home),
            "PREFLOOP_MODEL_FOLDERS": settings.model_folders,
        }
        started.append(start_worker(environment, settings.home / "worker.log"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


# --- the web service -------------------------------------------------------------------------------------------------


class SignedIn:
    """An in-process client of the app. It keeps cookies, and adds its session's CSRF token to every form."""

    def __init__(self, http: TestClient, user: User | None) -> None:
        self.http = http
        self.user = user
        self._token: tuple[dict[str, str], str] = {}, ""  # with the cookies that it belongs to

    def get(self, url: str, **kwargs: Any) -> Response:
        return self.http.get(url, **kwargs)

    def post(self, url: str, data: dict[str, Any] | None = None, *, csrf: bool = True, **kwargs: Any) -> Response:
        if csrf:
            kwargs["headers"] = {"X-CSRF-Token": self._csrf_token()} | kwargs.get("headers", {})
        return self.http.post(url, data=data, **kwargs)

    def _csrf_token(self) -> str:
        """Return the token on a page of this session; request it again if the cookies have changed."""
        if not self._token[1] or self._token[0] != dict(self.http.cookies):
            token = re.search(r'name="csrf_token" value="(\w+)"', self.http.get("/sign-in").text)
            token = token or re.search(r'"X-CSRF-Token": "(\w+)"', self.http.get("/projects").text)
            assert token, "no CSRF token on the page"
            self._token = dict(self.http.cookies), token[1]
        return self._token[1]


@pytest.fixture(scope="session")
def routers() -> dict[int, BaseRoute]:
    """The routers of this process's first app, by the id of our router that each includes."""
    return {}


@pytest.fixture
def app(engine: Engine, settings: Settings, routers: dict[int, BaseRoute]) -> FastAPI:
    app = create_app(settings, settings.database_url or "")
    # Use the process's one engine, so that each test does not open new connections.
    app.state.session_factory = make_session_factory(engine)
    # An app prepares its routes at the first request, which takes a tenth of a second. All apps have the same routes.
    for place, route in enumerate(app.router.routes):
        if ours := getattr(route, "original_router", None):
            app.router.routes[place] = routers.setdefault(id(ours), route)
    return app


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """The event loop that all clients share: starting one per request takes longer than most requests."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def sign_in(app: FastAPI, session: Session, portal: BlockingPortal) -> Iterator[Callable[..., SignedIn]]:
    """`sign_in("labeler", "admin")` makes a person with these roles in every project, and returns their client.
    `sign_in()` returns a visitor's client."""
    with contextlib.ExitStack() as stack:

        def open_client(*roles: str, user: User | None = None) -> SignedIn:
            http = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
            http.portal = portal
            stack.callback(http.close)
            if roles and user is None:
                user = factories.user(session, *roles)
            if user is not None:
                token = accounts.open_session(session, user, days=1)
                session.commit()
                http.cookies.set(SESSION_COOKIE, token)
            return SignedIn(http, user)

        yield open_client


@pytest.fixture
def live(app: FastAPI) -> Iterator[str]:
    """Serve the app on a real port for a browser; yield its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server did not start in 60 s"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=60)


# Long enough for a busy machine; tests wait only until their condition holds.
expect.set_options(timeout=20_000)

CHROMIUM_FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The browser's own extensions, and the pages of its window, take a sixth of the time in which a page opens.
    "--disable-extensions",
    "--disable-component-extensions-with-background-pages",
    "--disable-features=PreloadTopChromeWebUI,PreloadTopChromeWebUILessNavigations,InitialWebUI,WebUIReloadButton",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for one file: Playwright's event loop runs in this thread, where other files use event loops, too."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        assert path, "The browser tests need chromium: apt-get install chromium"
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser, live: str, session: Session) -> Iterator[Callable[..., Page]]:
    """`open_page("labeler", width=390, dark=True)` opens a page for a person who is signed in with these roles.

    `page.goto("/path")` is relative to the live server. A script error on any page fails the test at its end.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_(
        *roles: str,
        user: User | None = None,
        width: int = 1440,
        dark: bool = False,
        javascript: bool = True,
    ) -> Page:
        context = chromium.new_context(
            base_url=live,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
        )
        contexts.append(context)
        if roles and user is None:
            user = factories.user(session, *roles)
        if user is not None:
            token = accounts.open_session(session, user, days=1)
            session.commit()
            context.add_cookies([{"name": SESSION_COOKIE, "value": token, "url": live}])
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []
