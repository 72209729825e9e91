"""Sign-in, who may sign in, administrators and form protection, over HTTP."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.access.sessions import hash_token
from app.accounts import service
from app.db import make_session_factory
from app.errors import Conflict, InvalidInput
from app.models import AuditEvent, AuthSession, Project, User
from app.models.member import ROLES
from app.projects import service as projects
from tests import factories
from tests.accounts.people import PASSWORD, account
from tests.conftest import SignedIn
from tests.waiting import start_and_wait_for_its_lock

SignIn = Callable[..., SignedIn]


def test_signing_in_and_out(sign_in: SignIn, session: Session) -> None:
    account(session)
    client = sign_in()
    assert client.get("/projects").headers["location"] == "/sign-in?next=/projects"
    filtered = client.get("/projects/p/prompts?split=train&text=a%26b").headers["location"]
    assert parse_qs(urlsplit(filtered).query) == {"next": ["/projects/p/prompts?split=train&text=a%26b"]}
    wrong = client.post("/sign-in", {"email": "ada@example.org", "password": "not the password"})
    assert wrong.status_code == 422
    assert "No active account" in wrong.text
    assert "not the password" not in wrong.text
    right = client.post("/sign-in", {"email": "ADA@example.org", "password": PASSWORD, "next": "/projects"})
    assert (right.status_code, right.headers["location"]) == (303, "/projects")
    assert client.get("/projects").status_code == 200
    client.post("/sign-out")
    assert client.get("/projects").status_code == 303
    assert session.scalars(select(AuthSession)).all() == []


def test_the_password_and_tokens_are_stored_hashed(session: Session) -> None:
    user = account(session)
    token = service.open_session(session, user, days=1)
    session.flush()
    assert user.password_hash is not None
    assert user.password_hash.startswith("$argon2id$")
    assert session.scalar(select(AuthSession.token_hash)) != token


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "https://evil.example", "evil"])
def test_sign_in_never_leads_to_another_site(sign_in: SignIn, session: Session, target: str) -> None:
    account(session)
    answer = sign_in().post("/sign-in", {"email": "ada@example.org", "password": PASSWORD, "next": target})
    assert answer.headers["location"] == "/"


def test_a_session_ends_when_it_expires_or_the_account_is_switched_off(sign_in: SignIn, session: Session) -> None:
    client = sign_in("labeler")
    session.execute(AuthSession.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    session.commit()
    assert client.get("/projects").status_code == 303
    other = sign_in("labeler")
    sign_in("administrator").post(f"/people/{other.user.id}", {})
    assert other.get("/projects").status_code == 303


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/people", {"administrator"}), ("/projects/p/settings", {"admin"}), ("/projects", {"administrator", *ROLES})],
)
def test_routes_refuse_the_wrong_role(sign_in: SignIn, session: Session, path: str, allowed: set[str]) -> None:
    factories.project(session, slug="p")
    session.commit()
    for role in ("administrator", *ROLES):
        refused = 404 if role == "administrator" else 403  # people who are not members find no project
        assert sign_in(role).get(path).status_code == (200 if role in allowed else refused), role
    assert sign_in().get(path).status_code == 303


def test_a_form_without_our_token_is_refused(sign_in: SignIn) -> None:
    client = sign_in("administrator")
    for headers in ({}, {"X-CSRF-Token": "0" * 64}):
        refused = client.post("/projects", {"name": "New"}, csrf=False, headers=headers)
        assert refused.status_code == 403
        assert "Open the page again" in refused.text
    assert client.post("/projects", {"name": "New"}).status_code == 303
    # The token of one session does not work in another.
    other = sign_in("administrator")
    token = re.search(r'"X-CSRF-Token": "(\w+)"', client.get("/projects").text)
    assert other.post("/projects", {"name": "X"}, csrf=False, headers={"X-CSRF-Token": token[1]}).status_code == 403


@pytest.mark.parametrize(
    ("referer", "leads_to"),
    [
        ("http://testserver/projects?page=2", "/projects?page=2"),
        ("http://testserver//evil.example.org/projects", "/evil.example.org/projects"),
        ("http://testserver/\\evil.example.org", "/evil.example.org"),
        ("https://evil.example.org/projects", "/"),
        ("http://[", "/"),
        ("", "/"),
    ],
)
def test_who_was_signed_out_is_led_back_to_the_form(
    sign_in: SignIn, session: Session, referer: str, leads_to: str
) -> None:
    headers = {"Referer": referer}
    refused = sign_in().post("/projects", {"name": "New"}, headers=headers)
    assert refused.status_code == 401
    link = BeautifulSoup(refused.text, "html.parser").find("a", string="Sign in")
    assert parse_qs(urlsplit(str(link["href"])).query)["next"] == [leads_to]
    old = sign_in("administrator").post("/projects", {"name": "New"}, csrf=False, headers=headers)
    assert old.status_code == 403
    assert f'href="{leads_to}">Back to the page' in old.text


@pytest.mark.parametrize("ends", ["a new password", "switched off"])
def test_a_sign_in_that_was_under_way_ends_with_the_others(
    session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """The old password was right when it was read, but has changed by the time it is hashed."""
    user, factory, hashing = account(session), make_session_factory(engine), service._passwords

    class Slow:
        def verify(self, password: str, kept: str) -> bool:
            is_right = hashing.verify(password, kept)
            with factory.begin() as meanwhile:
                same = meanwhile.get_one(User, user.id)
                if ends == "a new password":
                    same.password_hash = hashing.hash("another good phrase")
                else:
                    service.set_account(meanwhile, same, same, is_admin=False, is_active=False)
            return is_right

    monkeypatch.setattr(service, "_passwords", Slow())
    with factory.begin() as own:
        assert service.authenticate(own, "ada@example.org", PASSWORD) is None


def test_a_sign_in_clears_away_those_that_expired(session: Session) -> None:
    user = account(session)
    service.open_session(session, user, days=1)
    session.flush()
    session.execute(AuthSession.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    token = service.open_session(session, user, days=1)
    session.flush()
    assert session.scalars(select(AuthSession.token_hash)).all() == [hash_token(token)]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p", name="Poems")
    session.commit()
    return project


def test_a_refused_account_form_keeps_what_was_chosen(sign_in: SignIn) -> None:
    admin = sign_in("administrator")
    last = admin.post(f"/people/{admin.user.id}", {"is_active": "true"})
    own = BeautifulSoup(last.text, "html.parser").select_one(f"form[action='/people/{admin.user.id}']")
    assert [box["name"] for box in own.select("input[checked]")] == ["is_active"]
    assert "last administrator" in last.text


def test_accounts_that_cannot_be(session: Session) -> None:
    account(session)
    good = {"name": "B", "password": PASSWORD}
    with pytest.raises(Conflict):
        service.create_user(session, email="ada@example.org", **good)
    with pytest.raises(InvalidInput, match="e-mail"):
        service.create_user(session, email="nobody", **good)
    with pytest.raises(InvalidInput, match="name"):
        service.create_user(session, email="b@example.org", **good | {"name": " "})


def test_a_taken_address_costs_no_hash(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person with an invitation could send it again and again, and sign-ins wait behind every hash."""
    account(session)
    monkeypatch.setattr(service, "_passwords", None)
    with pytest.raises(Conflict, match="already has an account"):
        service.create_user(session, email="ada@example.org", name="A", password=PASSWORD)


def test_the_last_administrator_stays(sign_in: SignIn, session: Session) -> None:
    admin = sign_in("administrator")
    for kept in ({"is_active": "true"}, {"is_admin": "true"}):
        answer = admin.post(f"/people/{admin.user.id}", kept)
        assert answer.status_code == 409
        assert "last administrator" in answer.text
    sign_in("administrator")
    assert admin.post(f"/people/{admin.user.id}", {"is_active": "true"}).status_code == 303
    assert "user.account_set" in session.scalars(select(AuditEvent.action)).all()


def test_an_account_that_a_project_needs_is_not_switched_off(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    admin, ada = sign_in("administrator"), factories.user(session, "admin")
    session.commit()
    answer = admin.post(f"/people/{ada.id}", {})
    assert answer.status_code == 409
    assert "last admin of “Poems”" in answer.text
    factories.user(session, "admin", is_active=False)  # people who may not sign in do not count
    session.commit()
    assert admin.post(f"/people/{ada.id}", {}).status_code == 409
    factories.user(session, "admin")
    session.commit()
    assert admin.post(f"/people/{ada.id}", {}).status_code == 303


@pytest.mark.parametrize("kind", ["account", "project"])
def test_of_two_with_one_name_at_once_the_second_is_told(session: Session, engine: Engine, kind: str) -> None:
    factory = make_session_factory(engine)
    refused: list[Conflict] = []

    def make(own: Session) -> None:
        if kind == "account":
            service.create_user(own, email="a@example.org", name="A", password=PASSWORD)
        else:
            projects.create(own, name="Poems", actor_id=None)

    def second() -> None:
        try:
            with factory.begin() as own:
                make(own)
        except Conflict as error:
            refused.append(error)

    with factory.begin() as first:
        make(first)
        other = start_and_wait_for_its_lock(second, factory)
    other.join(timeout=60)
    assert len(refused) == 1


def test_two_administrators_who_remove_each_other_leave_one(session: Session, engine: Engine) -> None:
    ada, bob = (factories.user(session, "administrator").id for _ in range(2))
    session.commit()
    factory = make_session_factory(engine)
    refused: list[Conflict] = []

    def remove_ada() -> None:
        try:
            with factory.begin() as second:
                bobs, adas = second.get_one(User, bob), second.get_one(User, ada)
                service.set_account(second, bobs, adas, is_admin=False, is_active=True)
        except Conflict as error:
            refused.append(error)

    with factory.begin() as first:
        adas, bobs = first.get_one(User, ada), first.get_one(User, bob)
        service.set_account(first, adas, bobs, is_admin=False, is_active=True)
        other = start_and_wait_for_its_lock(remove_ada, factory)
    other.join(timeout=60)
    assert len(refused) == 1
    assert session.scalars(select(User.id).where(User.is_admin)).all() == [ada]


def test_what_the_database_cannot_hold_is_refused_in_words(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler_id = factories.judgment(session, factories.comparison(session, project), preference=1).labeler_id
    session.commit()
    admin = sign_in("admin", "administrator")
    answers = [
        admin.get(f"/projects/p/review/{10**30}"),
        admin.post(f"/projects/p/labelers/{labeler_id}/remove", {"reason": "Nul\0l"}),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert "cannot be stored" in answer.text


def test_hostile_names_are_text(sign_in: SignIn, session: Session) -> None:
    factories.user(session, "labeler", name="<script>alert(1)</script>")
    session.commit()
    text = sign_in("administrator").get("/people").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_errors_within_a_project_lead_back_to_it(sign_in: SignIn, session: Session) -> None:
    factories.project(session, slug="p")
    session.commit()
    admin = sign_in("admin")
    for address, status in (
        ("/projects/p/data/export?kind=full&split=train", 422),
        ("/projects/p/review/1", 404),
        ("/projects/p/data/preview", 405),
    ):
        answer = admin.get(address)
        assert answer.status_code == status
        assert 'href="/projects/p">To the project' in answer.text
    assert "To the project" not in admin.get("/projects/none/review").text
