"""What the web service shows while its database does not respond."""

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from app.db import make_engine, make_session_factory
from app.models import PlaygroundChat, PlaygroundTurn
from app.projects import routes as projects
from tests import factories
from tests.conftest import SignedIn
from tests.waiting import start_and_wait_for_its_lock

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
    admin = sign_in("administrator")
    flush = Session.flush

    def lost(self: Session, *args: object) -> None:
        if self.new:
            self.rollback()  # like a flush that fails
            raise OperationalError("INSERT", {}, Exception("the connection is lost"))
        flush(self, *args)

    token = {"X-CSRF-Token": _token(admin)}
    monkeypatch.setattr(Session, "flush", lost)
    answer = admin.post("/projects", {"name": "Another"}, csrf=False, headers=token)
    assert answer.status_code == 503
    assert "cannot be reached" in answer.text


@pytest.mark.parametrize("address", ["/projects", "/projects/p", "/projects/p/label"])
def test_a_connection_lost_at_the_commit_is_said_in_words(
    app: FastAPI,
    sign_in: SignIn,
    session: Session,
    shared_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    """The error page shows the user and the project, which the rollback has expired."""
    factories.project(session, slug="p")
    client = sign_in("labeler", "admin")
    dialect = shared_engine.dialect

    def lost(connection: object) -> None:
        raise psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly")

    with monkeypatch.context() as patch:  # the end of the test commits again
        patch.setattr(dialect, "do_commit", lost)
        answer = client.get(address)
    assert (answer.status_code, "cannot be reached" in answer.text) == (503, True)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("53100", "disk is full"),
        ("53300", "no free connection"),
        ("53200", "too little memory"),
        ("40P01", "changed the same thing"),
        ("40001", "changed the same thing"),
        ("55P03", "is changing the same thing"),
        ("57014", "took the database too long"),
        ("57P01", "cannot be reached"),
        ("08006", "cannot be reached"),
    ],
)
def test_a_refusal_of_the_database_is_told_as_what_it_is(
    sign_in: SignIn, session: Session, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    client = sign_in("labeler")
    refusal = psycopg.errors.lookup(code)("said by the server")

    def refused(*args: object) -> None:
        raise OperationalError("SELECT", {}, refusal)

    monkeypatch.setattr(projects, "own_projects", refused)
    answer = client.get("/projects")
    assert answer.status_code == 503
    assert told in answer.text
    assert ("cannot be reached" in answer.text) is (told == "cannot be reached")


def test_only_what_cannot_be_stored_is_said_to_be_so(
    sign_in: SignIn, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sign_in("labeler")
    for error, status in (
        (psycopg.errors.NumericValueOutOfRange("bigint out of range"), 422),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), 422),
        (psycopg.errors.DivisionByZero("division by zero"), 500),
        (psycopg.DataError("timestamp too large (after year 10K)"), 500),
    ):

        def refused(*args: object, error: psycopg.Error = error) -> None:
            raise DataError("SELECT", {}, error)

        monkeypatch.setattr(projects, "own_projects", refused)
        answer = client.get("/projects")
        assert answer.status_code == status
        assert ("cannot be stored" in answer.text) is (status == 422)


def _token(client: SignedIn) -> str:
    return client.get("/projects").text.partition('"X-CSRF-Token": "')[2].partition('"')[0]


@pytest.mark.parametrize("form", ["answer", "message"])
def test_a_form_that_two_send_at_the_same_moment_is_taken_once(
    app: FastAPI, sign_in: SignIn, session: Session, form: str
) -> None:
    """Two people, or two pages, both find no row with the key, and the constraint decides."""
    project = factories.project(session, slug="p")
    key, models = uuid4(), [factories.model(session, project) for _ in range(2)]
    labeler, staff = sign_in("labeler"), sign_in("admin")
    assert labeler.user
    lease = factories.lease(session, factories.comparison(session, project), labeler_id=labeler.user.id)
    about = {"project_id": project.id, "owner_id": staff.user and staff.user.id, "is_blind": False}
    chats = [PlaygroundChat(**about, first_id=models[0].id, second_id=models[1].id) for _ in range(2)]
    session.add_all(chats)
    other = factories.comparison(session, project)
    run = factories.run(session, project, "playground")
    session.commit()
    client, address, sent = {
        "answer": (labeler, f"/projects/p/label/{lease.id}", {"rubric_id": other.rubric_id, "preference": 1}),
        "message": (staff, f"/projects/p/playground/{chats[0].id}", {"text": "Hello"}),
    }[form]
    client.get("/projects")
    # Somebody else's row is stored, but not visible yet.
    if form == "answer":
        factories.judgment(session, other, preference=1, idempotency_key=key)
    else:
        session.add(PlaygroundTurn(chat_id=chats[1].id, text="Hello", run_id=run.id, idempotency_key=key))
        session.flush()
    answers = []
    thread = start_and_wait_for_its_lock(
        lambda: answers.append(client.post(address, {"idempotency_key": str(key), **sent})), app.state.session_factory
    )
    session.commit()
    thread.join()
    assert [answer.status_code for answer in answers] == [409]
    assert "was saved once" in answers[0].text


def test_a_full_disk_is_said_in_words(
    sign_in: SignIn, session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For files that are made for sending, and for uploads."""
    factories.project(session, slug="p")
    session.commit()
    client = sign_in("admin")
    client.get("/projects")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    file = {"files": ("x.jsonl", b"{}")}
    for answer in (
        client.get("/projects/p/samples.jsonl"),
        client.post("/projects/p/data", {}, files=file),
        client.post("/projects/p/data/preview", {}, files=file),
    ):
        assert (answer.status_code, "disk is full" in answer.text) == (507, True)
