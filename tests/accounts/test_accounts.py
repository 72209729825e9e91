"""Sign-in, roles, one-time links and form protection, over HTTP."""

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.accounts import service
from app.db import make_session_factory
from app.errors import Conflict, Gone, InvalidInput
from app.models import AuditEvent, AuthSession, SigninLink, User
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
PASSWORD = "correct horse battery"


def account(session: Session, *roles: str) -> User:
    user = service.create_user(session, email="Ada@Example.org ", name="Ada", password=PASSWORD, roles=list(roles))
    session.commit()
    return user


def test_signing_in_and_out(sign_in: SignIn, session: Session) -> None:
    account(session, "labeler")
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
    user = account(session, "labeler")
    token = service.open_session(session, user, days=1)
    session.flush()
    assert user.password_hash is not None
    assert user.password_hash.startswith("$argon2id$")
    assert session.scalar(select(AuthSession.token_hash)) != token


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "https://evil.example", "evil"])
def test_sign_in_never_leads_to_another_site(sign_in: SignIn, session: Session, target: str) -> None:
    account(session, "labeler")
    answer = sign_in().post("/sign-in", {"email": "ada@example.org", "password": PASSWORD, "next": target})
    assert answer.headers["location"] == "/"


def test_a_session_ends_when_it_expires_or_the_account_is_switched_off(sign_in: SignIn, session: Session) -> None:
    client = sign_in("labeler")
    session.execute(AuthSession.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    session.commit()
    assert client.get("/projects").status_code == 303
    other = sign_in("labeler")
    admin = sign_in("admin")
    admin.post(f"/people/{other.user.id}", {"roles": ["labeler"]})
    assert other.get("/projects").status_code == 303


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/people", {"admin"}), ("/projects/p/settings", {"admin"}), ("/projects", {"admin", "labeler", "operator"})],
)
def test_routes_refuse_the_wrong_role(sign_in: SignIn, session: Session, path: str, allowed: set[str]) -> None:
    factories.project(session, slug="p")
    session.commit()
    for role in ("labeler", "admin", "operator"):
        answer = sign_in(role).get(path)
        assert answer.status_code == (200 if role in allowed else 403), role
    assert sign_in().get(path).status_code == 303


def test_a_form_without_our_token_is_refused(sign_in: SignIn) -> None:
    client = sign_in("admin")
    for headers in ({}, {"X-CSRF-Token": "0" * 64}):
        refused = client.post("/projects", {"name": "New"}, csrf=False, headers=headers)
        assert refused.status_code == 403
        assert "Reload the page" in refused.text
    assert client.post("/projects", {"name": "New"}).status_code == 303
    # The token of one session is no good in another.
    other = sign_in("admin")
    token = re.search(r'"X-CSRF-Token": "(\w+)"', client.get("/projects").text)
    assert other.post("/projects", {"name": "X"}, csrf=False, headers={"X-CSRF-Token": token[1]}).status_code == 403


def test_an_invitation_makes_one_account_with_its_roles(sign_in: SignIn, session: Session) -> None:
    page = sign_in("admin").post("/people/invite", {"roles": ["labeler", "operator"]})
    url = re.search(r'value="http://[^"]+(/join/[\w-]+)"', page.text)[1]
    guest = sign_in()
    assert "labeler, operator" in guest.get(url).text
    short = guest.post(url, {"name": "Bo", "email": "bo@example.org", "password": "short"})
    assert short.status_code == 422
    assert 'value="bo@example.org"' in short.text
    joined = guest.post(url, {"name": "Bo", "email": "bo@example.org", "password": PASSWORD})
    assert joined.status_code == 303
    assert session.scalars(select(User).where(User.email == "bo@example.org")).one().roles == ["labeler", "operator"]
    assert guest.get("/projects").status_code == 200
    assert sign_in().get(url).status_code == 410


def test_an_account_says_what_judges_through_it(sign_in: SignIn, session: Session) -> None:
    page = sign_in("admin").post("/people/invite", {"roles": ["labeler"], "kind": "ai_judge"})
    url = re.search(r'value="http://[^"]+(/join/[\w-]+)"', page.text)[1]
    sign_in().post(url, {"name": "Judge", "email": "judge@example.org", "password": PASSWORD})
    assert session.scalars(select(User.kind).where(User.email == "judge@example.org")).one() == "ai_judge"


def test_a_password_link_sets_the_password_of_its_user_only(sign_in: SignIn, session: Session) -> None:
    user = account(session, "labeler")
    stolen = sign_in(user=user)
    page = sign_in("admin").post(f"/people/{user.id}/reset")
    url = re.search(r'value="http://[^"]+(/join/[\w-]+)"', page.text)[1]
    answer = sign_in().post(url, {"password": "another long phrase", "email": "x@example.org", "name": "X"})
    assert answer.status_code == 303
    session.expire_all()
    assert service.authenticate(session, "ada@example.org", "another long phrase") == user
    assert service.authenticate(session, "ada@example.org", PASSWORD) is None
    assert stolen.get("/projects").status_code == 303  # older sign-ins end with the old password


def test_links_expire_and_are_used_once(session: Session) -> None:
    token = service.create_link(session, roles=["admin"], created_by=None, days=1)
    service.redeem_link(session, token, email="a@example.org", name="A", password=PASSWORD)
    with pytest.raises(Gone):
        service.redeem_link(session, token, email="b@example.org", name="B", password=PASSWORD)
    late = service.create_link(session, roles=["admin"], created_by=None, days=1)
    session.flush()
    session.execute(SigninLink.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    session.expire_all()
    with pytest.raises(Gone):
        service.open_link(session, late)


def test_accounts_that_cannot_be(session: Session) -> None:
    account(session, "labeler")
    good = {"name": "B", "password": PASSWORD, "roles": ["labeler"]}
    with pytest.raises(Conflict):
        service.create_user(session, email="ada@example.org", **good)
    with pytest.raises(InvalidInput, match="e-mail"):
        service.create_user(session, email="nobody", **good)
    with pytest.raises(InvalidInput, match="name"):
        service.create_user(session, email="b@example.org", **good | {"name": " "})


def test_the_last_admin_stays(sign_in: SignIn, session: Session) -> None:
    admin = sign_in("admin")
    answer = admin.post(f"/people/{admin.user.id}", {"roles": ["labeler"], "is_active": "true"})
    assert answer.status_code == 409
    assert "last admin" in answer.text
    sign_in("admin")
    assert admin.post(f"/people/{admin.user.id}", {"roles": ["labeler"], "is_active": "true"}).status_code == 303
    assert "user.roles_set" in session.scalars(select(AuditEvent.action)).all()


def test_two_admins_who_remove_each_other_leave_one(session: Session, engine: Engine) -> None:
    ada, bob = (factories.user(session, "admin").id for _ in range(2))
    session.commit()
    factory = make_session_factory(engine)
    refused: list[Exception] = []

    def remove_ada() -> None:
        try:
            with factory.begin() as second:
                service.set_roles(second, second.get_one(User, bob), second.get_one(User, ada), [], is_active=True)
        except Exception as error:  # noqa: BLE001 - told apart below
            refused.append(error)

    other = threading.Thread(target=remove_ada)
    with factory.begin() as first:
        service.set_roles(first, first.get_one(User, ada), first.get_one(User, bob), [], is_active=True)
        other.start()
        waiting = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
        while other.is_alive():
            with factory() as watch:
                if watch.scalar(waiting):
                    break
    other.join(timeout=20)
    assert [type(error) for error in refused] == [Conflict]
    assert session.scalars(select(User.id).where(User.roles.contains(["admin"]))).all() == [ada]


def test_what_the_database_cannot_hold_is_refused_in_words(sign_in: SignIn, session: Session) -> None:
    factories.project(session, slug="p")
    session.commit()
    admin = sign_in("admin")
    answers = [admin.get(f"/projects/p/review/{10**30}"), admin.post("/projects", {"name": "Nul\0l"})]
    for answer in answers:
        assert answer.status_code == 422
        assert "cannot be stored" in answer.text


def test_hostile_names_are_text(sign_in: SignIn, session: Session) -> None:
    factories.user(session, "labeler", name="<script>alert(1)</script>")
    session.commit()
    text = sign_in("admin").get("/people").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
