"""What people see of the web service while its database does not answer."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import make_engine, make_session_factory
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]


def test_a_database_that_is_away_is_said_in_words(app: FastAPI, sign_in: SignIn) -> None:
    client = sign_in("labeler")
    away = make_engine("postgresql://nobody@127.0.0.1:1/none")  # nothing listens on port 1
    app.state.session_factory = make_session_factory(away)
    page = client.get("/projects")
    assert page.status_code == 503
    assert "cannot be reached" in page.text
    assert "<html" in page.text
    fragment = client.get("/projects", headers={"HX-Request": "true"})
    assert fragment.status_code == 503
    assert "still in the form" in fragment.text
    assert "<html" not in fragment.text
    away.dispose()


def test_a_connection_lost_while_writing_is_said_in_words(
    sign_in: SignIn, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.project(session, slug="p")
    session.commit()
    admin = sign_in("admin")
    flush = Session.flush

    def lost(self: Session, *args: object) -> None:
        if self.new:
            self.rollback()  # as a flush that fails does
            raise OperationalError("INSERT", {}, Exception("the connection is lost"))
        flush(self, *args)

    token = {"X-CSRF-Token": _token(admin)}
    monkeypatch.setattr(Session, "flush", lost)
    answer = admin.post("/projects", {"name": "Another"}, csrf=False, headers=token)
    assert answer.status_code == 503
    assert "cannot be reached" in answer.text


def _token(client: SignedIn) -> str:
    return client.get("/projects").text.partition('"X-CSRF-Token": "')[2].partition('"')[0]
