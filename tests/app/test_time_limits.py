"""A page does not wait forever for the database, and says what happened when it stops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.datasets import queries as datasets
from app.db import Limits, make_engine, make_session_factory
from app.main import create_app
from app.projects import routes as projects
from app.settings import Settings
from tests import factories
from tests.conftest import SignedIn
from tests.waiting import wait_for
from trainer.service.worker import Worker

SignIn = Callable[..., SignedIn]
LIMITS = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), " \
    "current_setting('idle_in_transaction_session_timeout')"  # fmt: skip


@pytest.fixture
def limit(app: FastAPI, database_url: str) -> Callable[..., None]:
    """`limit(lock=0.2)` sets the limits of the app's connections."""

    def set_(**limits: float) -> None:
        app.state.session_factory = make_session_factory(make_engine(database_url, limits=Limits(**limits)))

    return set_


@pytest.mark.parametrize(
    ("limits", "told", "then"),
    [
        ({"lock": 0.2}, "Somebody else is changing the same thing right now", "Wait a few seconds and send it again."),
        ({"statement": 0.2}, "This took the database too long", "PREFLOOP_STATEMENT_SECONDS"),
    ],
)
def test_a_form_that_meets_a_lock_is_told_so_and_can_be_sent_again(
    sign_in: SignIn, limit: Callable[..., None], database_url: str, limits: dict[str, float], told: str, then: str
) -> None:
    admin = sign_in("administrator")
    limit(**limits)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE project IN EXCLUSIVE MODE")  # others may read
        answer = admin.post("/projects", {"name": "Another"})
        assert answer.status_code == 503
        assert told in answer.text
        assert then in answer.text
        assert "Nothing was lost" in answer.text
    assert admin.post("/projects", {"name": "Another"}).status_code == 303


def test_a_page_that_meets_a_lock_is_told_so(sign_in: SignIn, limit: Callable[..., None], database_url: str) -> None:
    labeler = sign_in("labeler")
    limit(lock=0.2)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE project_member IN ACCESS EXCLUSIVE MODE")
        answer = labeler.get("/projects")
        assert answer.status_code == 503
        assert "<html" in answer.text
        assert "reload this page" in answer.text
    assert labeler.get("/projects").status_code == 200


def test_figures_that_meet_a_lock_are_told_so(
    sign_in: SignIn, session: Session, limit: Callable[..., None], database_url: str
) -> None:
    """The driver's own cursor reads them, without SQLAlchemy."""
    project = factories.project(session)
    admin = sign_in("admin")
    limit(lock=0.2)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE comparison IN ACCESS EXCLUSIVE MODE")
        answer = admin.get(f"/projects/{project.slug}/labelers")
        assert answer.status_code == 503
        assert "Somebody else is changing the same thing right now" in answer.text
    assert admin.get(f"/projects/{project.slug}/labelers").status_code == 200


def test_a_script_is_not_told_to_reload_the_page(
    sign_in: SignIn, session: Session, limit: Callable[..., None], database_url: str
) -> None:
    project = factories.project(session)
    labeler = sign_in("labeler")
    limit(lock=0.2)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE user_account IN ROW EXCLUSIVE MODE")
        other.execute("SELECT FROM user_account FOR UPDATE")
        answer = labeler.post(f"/projects/{project.slug}/label/undo", headers={"Accept": "application/json"})
        assert answer.status_code == 503
        assert answer.json()["advice"] == "Wait a few seconds and send it again."


def test_a_transaction_in_which_nothing_happens_is_ended_and_told_so(
    sign_in: SignIn, limit: Callable[..., None], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler = sign_in("labeler")
    limit(idle=0.2)
    with psycopg.connect(database_url, autocommit=True) as other, monkeypatch.context() as patch:

        def busy_elsewhere(session: Session, *_: Any) -> list[Any]:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
            wait_for(lambda: other.execute(there, (pid,)).fetchone() == (False,), "the end of the connection")
            session.execute(text("SELECT 1"))
            return []

        patch.setattr(projects, "own_projects", busy_elsewhere)
        answer = labeler.get("/projects")
    assert answer.status_code == 503
    assert "This took too long" in answer.text
    assert labeler.get("/projects").status_code == 200


def test_imports_and_exports_may_take_as_long_as_they_need(
    sign_in: SignIn, session: Session, limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = factories.project(session)
    session.commit()
    admin = sign_in("admin")
    limit(statement=7, lock=3)
    seen = []
    holdings = datasets.holdings

    def look(session: Session, *args: Any) -> Any:
        seen.append(tuple(session.execute(text(LIMITS)).one())[:2])
        return holdings(session, *args)

    monkeypatch.setattr(datasets, "holdings", look)
    assert admin.get(f"/projects/{project.slug}/data").status_code == 200
    assert seen == [("0", "3s")]
    with make_session_factory(admin.http.app.state.session_factory.kw["bind"])() as fresh:  # type: ignore[attr-defined]
        assert tuple(fresh.execute(text(LIMITS)).one())[:2] == ("7s", "3s")


def test_the_settings_limit_the_web_service_and_the_worker(database_url: str, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, statement_seconds=7, lock_seconds=0.5, idle_seconds=120, secret_key="x", _env_file=None
    )
    web, worker = create_app(settings, database_url), Worker(settings, database_url)
    with web.state.session_factory() as session:
        assert tuple(session.execute(text(LIMITS)).one()) == ("7s", "500ms", "2min")
    with worker.sessions() as session:
        assert tuple(session.execute(text(LIMITS)).one()) == ("0", "0", "2min")
    web.state.session_factory.kw["bind"].dispose()
    worker.engine.dispose()
