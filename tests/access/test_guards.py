"""The guards' cost in statements, and their texts."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from app.models import Project
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that are executed on any connection."""
    seen: list[str] = []

    def note(*about: object) -> None:
        seen.append(str(about[2]))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p")
    factories.published_rubric(session, project)
    factories.comparison(session, project, state="in_review", review_reason="split")
    session.commit()
    return project


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/projects/p"),
        ("get", "/projects/p/review"),
        ("get", "/projects/p/demonstrations"),
        ("post", "/projects/p/quiz"),
    ],
)
def test_who_asks_and_what_they_may_is_read_in_one_statement(
    engine: Engine, sign_in: SignIn, project: Project, method: str, path: str
) -> None:
    client = sign_in("labeler", "admin", "operator")
    client.get("/projects")
    client._csrf_token()
    with statements(engine) as seen:
        getattr(client, method)(path)
    # Other statements may read who else is a member, for sidebar and start page. None reads the user's roles again.
    for read in ("auth_session", r"project_member\.roles(?! [@&])"):
        assert [statement for statement in seen if re.search(read, statement)] == seen[:1]


def test_a_refusal_names_the_role_and_who_gives_it(sign_in: SignIn, project: Project) -> None:
    refused = sign_in("labeler").get("/projects/p/settings").text
    assert "people with the role admin in this project" in refused
    assert "An admin of the project can give you that role" in refused
    assert "administrators of the service" in sign_in("admin").get("/people").text
