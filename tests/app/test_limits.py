"""Which parts of a request are read and parsed, depending on sender, encoding and size."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import Engine, delete, event
from sqlalchemy.orm import Session

from app import limits
from app.limits import FORM, SMALL, FormRequest, FormRoute, UploadRoute
from app.main import ROUTERS
from app.models import AuthSession, Project, ProjectMember
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
PUNYCODE = "multipart/form-data; boundary=x; charset=punycode"


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p")
    session.commit()
    return project


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the bodies that were parsed."""
    sizes: list[int] = []
    fields, form = limits._fields, limits.Request.form

    def counted(body: bytes, most: int) -> Any:
        sizes.append(len(body))
        return fields(body, most)

    def parsed_by_starlette(self: FormRequest, **kwargs: Any) -> Any:
        if self._form is None:
            sizes.append(self.declared)
        return form(self, **kwargs)

    monkeypatch.setattr(limits, "_fields", counted)
    monkeypatch.setattr(limits.Request, "form", parsed_by_starlette)
    return sizes


def posts(router: APIRouter) -> list[APIRoute]:
    found = []
    for route in router.routes:
        if isinstance(route, APIRoute) and not {"GET", "HEAD"} >= route.methods:
            found.append(route)
    return found


def test_every_route_with_a_form_is_limited() -> None:
    routes = [route for router in ROUTERS for route in posts(router)]
    assert len(routes) > 50
    assert [route.path for route in routes if not isinstance(route, FormRoute)] == []
    takes_files = {route.path for route in routes if isinstance(route, UploadRoute)}
    data = "/projects/{project_slug}/data"  # admins only
    assert takes_files == {data, f"{data}/preview", f"{data}/imports/{{import_id}}/undo"}
    public = {route.path for route in routes if not list(limits._guards(route.dependant))}
    assert public == {"/sign-in", "/sign-out", "/join/{token}"}


@pytest.mark.parametrize("path", ["/projects/p/data", "/projects/p/label/here", "/projects/p/rubric", "/projects"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", PUNYCODE])
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_nothing_is_parsed_of_visitors(
    project: Project, sign_in: SignIn, parsed: list[int], path: str, kind: str, size: int
) -> None:
    answer = sign_in().http.post(path, content=b"a" * size, headers={"content-type": kind})
    assert answer.status_code == 401
    assert parsed == []


@pytest.mark.parametrize("path", ["/projects/p/data", "/projects/p/rubric"])
def test_nothing_is_parsed_of_those_who_may_not(
    project: Project, sign_in: SignIn, parsed: list[int], path: str
) -> None:
    labeler = sign_in("labeler")
    answer = labeler.post(path, {"a": "b" * 400_000})
    assert answer.status_code == 403
    assert "role admin" in answer.text
    stranger = sign_in("administrator")
    assert stranger.post(path, {"a": "b" * 400_000}).status_code == 404
    assert parsed == []


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "words"),
    [
        ("/sign-in", PUNYCODE, b"--x", 415, "in UTF-8"),
        ("/sign-in", "multipart/form-data; boundary=x", b"--x", 415, "x-www-form-urlencoded"),
        ("/sign-in", "application/x-www-form-urlencoded; charset=utf-16", b"a=b", 415, "in UTF-8"),
        ("/sign-in", "application/json", b"{}", 415, "x-www-form-urlencoded"),
        ("/sign-in", "application/x-www-form-urlencoded", b"a" * (SMALL + 1), 413, "larger than 16 KB"),
        ("/sign-in", "application/x-www-form-urlencoded", b"a=%ff", 422, "not in UTF-8"),
        ("/sign-in", "application/x-www-form-urlencoded", b"a=\xff", 422, "not in UTF-8"),
        ("/sign-in", "application/x-www-form-urlencoded", b"a=&" * 1_500, 422, "more than 1,000 fields"),
        ("/projects/p/data", PUNYCODE, b"--x", 415, "in UTF-8"),
        ("/projects/p/data", "multipart/form-data; boundary=x; charset*=''punycode", b"--x", 415, "in UTF-8"),
        ("/projects/p/data", "application/x-www-form-urlencoded", b"a" * (FORM + 1), 413, "larger than 512 KB"),
        ("/projects/p/data", "multipart/form-data; boundary=x", b"--x" + b"a" * (2 << 20), 413, "larger than 1 MB"),
        ("/projects", "application/x-www-form-urlencoded", b"a" * (FORM + 1), 413, "larger than 512 KB"),
    ],
)
def test_what_is_refused_and_why(
    app: FastAPI, project: Project, sign_in: SignIn, path: str, kind: str, body: bytes, status: int, words: str
) -> None:
    app.state.settings = app.state.settings.model_copy(update={"max_upload_mb": 1})
    client = sign_in() if path == "/sign-in" else sign_in("admin", "administrator")
    for content in (body, iter([body])):  # with and without its length
        answer = client.post(path, content=content, headers={"content-type": kind})
        assert (answer.status_code, words in answer.text) == (status, True)


def test_a_form_in_utf_8_arrives(project: Project, sign_in: SignIn) -> None:
    admin = sign_in("administrator")
    kind = {"content-type": "application/x-www-form-urlencoded; charset=UTF-8"}
    assert admin.post("/projects", content="name=Zo%C3%A9+%2B", headers=kind).status_code == 303
    assert "Zoé +" in admin.get("/projects").text


def test_others_get_their_turn_while_a_large_file_arrives() -> None:
    """Other requests run between any two parsed pieces, whatever the server's chunks are."""
    body, turns, most_between = b"a" * (1 << 20), 0, 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def read() -> None:
        nonlocal most_between
        scope = {"type": "http", "headers": [], "method": "POST"}
        form = FormRequest(limits.Request(scope, receive), 2 << 20, 10, takes_files=True)
        task = asyncio.create_task(other())
        since, seen = 0, 0
        async for piece in form.stream():
            since = len(piece) if turns > seen else since + len(piece)
            seen = turns
            most_between = max(most_between, since)
        task.cancel()

    asyncio.run(read())
    assert most_between <= 2 * limits.PIECE


@pytest.mark.parametrize("lost", ["membership", "role", "sign-in"])
def test_who_loses_the_right_while_a_form_arrives_is_refused(
    session: Session, project: Project, sign_in: SignIn, lost: str
) -> None:
    """Otherwise people who expect to lose the right could keep a request open and finish it later."""
    admin = sign_in(user=factories.member(session, project, "admin"))
    friend = factories.account(session, email="friend@example.org")
    session.commit()

    def slowly() -> Iterator[bytes]:
        yield b"email=friend@example.org&roles=admin"
        row = session.get_one(ProjectMember, (project.id, admin.user.id))
        if lost == "membership":
            session.delete(row)
        elif lost == "role":
            row.roles = ["labeler"]
        else:
            session.execute(delete(AuthSession))
        session.commit()
        yield b"&unknown=" + b"x" * SMALL

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = admin.post("/projects/p/members", content=slowly(), headers=form)
    assert answer.status_code == {"membership": 404, "role": 403, "sign-in": 401}[lost]
    assert session.get(ProjectMember, (project.id, friend.id)) is None


@pytest.mark.parametrize(("size", "times"), [(10, 1), (2 * SMALL, 2)])
def test_the_sign_in_is_asked_for_once(
    engine: Engine, project: Project, sign_in: SignIn, size: int, times: int
) -> None:
    """For a large form, before and after it is read."""
    labeler, asked = sign_in("labeler"), []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append("JOIN auth_session" in statement)

    labeler.post("/projects/p/label/here")  # also requests the page's token
    event.listen(engine, "before_cursor_execute", note)
    answer = labeler.post("/projects/p/label/here", {"unknown": "x" * size})
    event.remove(engine, "before_cursor_execute", note)
    assert answer.status_code == 200
    assert sum(asked) == times
