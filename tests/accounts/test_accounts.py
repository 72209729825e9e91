"""Sign-in, roles, one-time links and form protection, over HTTP."""

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup
from httpx import Response
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from app.access.sessions import hash_token
from app.accounts import service
from app.db import make_session_factory
from app.errors import Conflict, Gone, InvalidInput
from app.models import AuditEvent, AuthSession, Project, ProjectMember, SigninLink, User
from app.models.member import ROLES
from app.projects import service as projects
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
PASSWORD = "correct horse battery"


def account(session: Session) -> User:
    user = service.create_user(session, email="Ada@Example.org ", name="Ada", password=PASSWORD)
    session.commit()
    return user


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
        refused = 404 if role == "administrator" else 403  # who is no member finds no project
        assert sign_in(role).get(path).status_code == (200 if role in allowed else refused), role
    assert sign_in().get(path).status_code == 303


def test_a_form_without_our_token_is_refused(sign_in: SignIn) -> None:
    client = sign_in("administrator")
    for headers in ({}, {"X-CSRF-Token": "0" * 64}):
        refused = client.post("/projects", {"name": "New"}, csrf=False, headers=headers)
        assert refused.status_code == 403
        assert "Reload the page" in refused.text
    assert client.post("/projects", {"name": "New"}).status_code == 303
    # The token of one session is no good in another.
    other = sign_in("administrator")
    token = re.search(r'"X-CSRF-Token": "(\w+)"', client.get("/projects").text)
    assert other.post("/projects", {"name": "X"}, csrf=False, headers={"X-CSRF-Token": token[1]}).status_code == 403


def test_a_sign_in_clears_away_those_that_expired(session: Session) -> None:
    user = account(session)
    service.open_session(session, user, days=1)
    session.flush()
    session.execute(AuthSession.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    token = service.open_session(session, user, days=1)
    session.flush()
    assert session.scalars(select(AuthSession.token_hash)).all() == [hash_token(token)]


def link_on(page: Response) -> str:
    """The address of the link that the page shows."""
    return re.search(r'value="http://[^"]+(/join/[\w-]+)"', page.text)[1]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p", name="Poems")
    session.commit()
    return project


def roles_of(session: Session, email: str) -> dict[str, list[str]]:
    """By project."""
    found = (
        select(Project.slug, ProjectMember.roles)
        .join(ProjectMember, ProjectMember.project_id == Project.id)
        .join(User, User.id == ProjectMember.user_id)
    )
    return dict(session.execute(found.where(User.email == email)).all())


def test_unused_links_are_listed_and_revoked(sign_in: SignIn, session: Session, project: Project) -> None:
    admin = sign_in("administrator")
    url = link_on(admin.post("/people/invite", {"project": "p", "roles": ["labeler"], "kind": "ai_judge"}))
    listed = admin.get("/people").text
    assert "invites as labeler to Poems" in listed
    action = re.search(r'"(/people/links/\d+/revoke)"', listed)[1]
    assert sign_in("labeler", "admin").post(action).status_code == 403
    assert admin.post(action).status_code == 303
    assert "Unused links" not in admin.get("/people").text
    assert sign_in().get(url).status_code == 410
    again = admin.post(action)
    assert again.status_code == 409
    assert "used or revoked in the meantime" in again.text
    assert "link.revoked" in session.scalars(select(AuditEvent.action)).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"roles": ["labeler"]}, "none is chosen"),
        ({"project": "p"}, "No role"),
        ({"project": "q", "roles": ["labeler"]}, "No project"),
    ],
)
def test_refused_people_forms_keep_what_was_chosen(
    sign_in: SignIn, project: Project, wrong: dict[str, object], said: str
) -> None:
    admin = sign_in("administrator")
    refused = admin.post("/people/invite", {"kind": "ai_judge", "is_admin": "true"} | wrong)
    assert refused.status_code == 422
    assert said in refused.text
    form = BeautifulSoup(refused.text, "html.parser").select_one("form[action='/people/invite']")
    chosen = {option["value"] for option in form.select("option[selected]")}
    assert chosen == {"ai_judge"} | ({"p"} if wrong.get("project") == "p" else set())
    assert [box["value"] for box in form.select("input[checked]")] == [*wrong.get("roles", []), "true"]


def test_a_refused_account_form_keeps_what_was_chosen(sign_in: SignIn) -> None:
    admin = sign_in("administrator")
    last = admin.post(f"/people/{admin.user.id}", {"is_active": "true"})
    own = BeautifulSoup(last.text, "html.parser").select_one(f"form[action='/people/{admin.user.id}']")
    assert [box["name"] for box in own.select("input[checked]")] == ["is_active"]
    assert "last administrator" in last.text


def test_an_invitation_makes_one_account_with_its_roles(sign_in: SignIn, session: Session, project: Project) -> None:
    page = sign_in("administrator").post("/people/invite", {"project": "p", "roles": ["operator", "labeler"]})
    url, guest = link_on(page), sign_in()
    welcome = " ".join(BeautifulSoup(guest.get(url).text, "html.parser").select_one("main").get_text().split())
    assert "makes your account as labeler, operator in the project Poems." in welcome
    short = guest.post(url, {"name": "Bo", "email": "bo@example.org", "password": "short"})
    assert short.status_code == 422
    assert 'value="bo@example.org"' in short.text
    joined = guest.post(url, {"name": "Bo", "email": "bo@example.org", "password": PASSWORD})
    assert (joined.status_code, joined.headers["location"]) == (303, "/projects/p")
    assert roles_of(session, "bo@example.org") == {"p": ["labeler", "operator"]}
    assert not session.scalars(select(User.is_admin).where(User.email == "bo@example.org")).one()
    assert guest.get("/projects/p").status_code == 200
    assert sign_in().get(url).status_code == 410


def test_an_account_says_what_judges_through_it(sign_in: SignIn, session: Session, project: Project) -> None:
    url = link_on(sign_in("administrator").post("/people/invite", {"kind": "ai_judge"}))
    sign_in().post(url, {"name": "Judge", "email": "judge@example.org", "password": PASSWORD})
    assert session.scalars(select(User.kind).where(User.email == "judge@example.org")).one() == "ai_judge"
    assert roles_of(session, "judge@example.org") == {}  # an account that is a member of nothing yet


def test_a_password_link_sets_the_password_of_its_user_only(sign_in: SignIn, session: Session) -> None:
    user = account(session)
    stolen = sign_in(user=user)
    url = link_on(sign_in("administrator").post(f"/people/{user.id}/reset"))
    answer = sign_in().post(url, {"password": "another long phrase", "email": "x@example.org", "name": "X"})
    assert answer.status_code == 303
    session.expire_all()
    assert service.authenticate(session, "ada@example.org", "another long phrase") == user
    assert service.authenticate(session, "ada@example.org", PASSWORD) is None
    assert stolen.get("/projects").status_code == 303  # older sign-ins end with the old password


def test_links_expire_and_are_used_once(session: Session) -> None:
    token = service.create_link(session, created_by=None, days=1)
    service.redeem_link(session, token, email="a@example.org", name="A", password=PASSWORD)
    with pytest.raises(Gone):
        service.redeem_link(session, token, email="b@example.org", name="B", password=PASSWORD)
    late = service.create_link(session, created_by=None, days=1)
    session.flush()
    session.execute(SigninLink.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    session.expire_all()
    with pytest.raises(Gone):
        service.open_link(session, late)


def test_using_one_password_link_ends_the_others(session: Session) -> None:
    user = account(session)
    first, second, third = (
        service.create_link(session, created_by=None, days=1, user_id=each)
        for each in (user.id, user.id, factories.user(session).id)
    )
    service.redeem_link(session, first, email="", name="", password="another long phrase")
    with pytest.raises(Gone):
        service.redeem_link(session, second, email="", name="", password="an attacker's phrase")
    assert service.open_link(session, third)  # somebody else's


def test_of_two_password_links_used_at_once_one_is_refused(session: Session, engine: Engine) -> None:
    user = account(session)
    tokens = [service.create_link(session, created_by=None, days=1, user_id=user.id) for _ in range(2)]
    session.commit()
    factory = make_session_factory(engine)
    refused: list[Gone] = []

    def use(own: Session, token: str) -> None:
        service.redeem_link(own, token, email="", name="", password=f"a phrase with {token}")

    def second() -> None:
        try:
            with factory.begin() as own:
                use(own, tokens[1])
        except Gone as error:
            refused.append(error)

    with factory.begin() as first:
        use(first, tokens[0])
        other = start_and_wait_for_its_lock(second, factory)
    other.join(timeout=60)
    assert len(refused) == 1


@pytest.mark.parametrize("loses", ["right", "account"])
def test_links_die_with_the_right_of_whoever_made_them(
    sign_in: SignIn, session: Session, project: Project, loses: str
) -> None:
    evil, admin = sign_in("administrator", "admin"), sign_in("administrator", "admin")
    made = [
        evil.post("/people/invite", {"is_admin": "true"}),
        evil.post(f"/people/{admin.user.id}/reset"),
        evil.post(f"/people/{evil.user.id}/reset"),
        evil.post("/people/invite", {"project": "p", "roles": ["admin"], "is_admin": "true"}),
    ]
    urls = [link_on(page) for page in made]
    own = link_on(evil.post("/projects/p/members/invite", {"roles": ["admin"]}))  # as an admin of the project
    kept = {"is_active": "true"} if loses == "right" else {"is_admin": "true"}
    assert admin.post(f"/people/{evil.user.id}", kept).status_code == 303
    form = {"name": "E", "email": "e@example.org", "password": PASSWORD}
    assert [sign_in().post(url, form).status_code for url in urls] == [410] * 4
    assert sign_in().get(own).status_code == (200 if loses == "right" else 410)
    assert ("Unused links" in admin.get("/people").text) == (loses == "right")
    # Not even the right given back brings them back.
    admin.post(f"/people/{evil.user.id}", {"is_admin": "true", "is_active": "true"})
    assert sign_in().get(urls[0]).status_code == 410


@pytest.mark.parametrize("gives", [{"is_admin": True}, {}])
def test_a_link_made_while_its_maker_lost_the_right_is_dead(session: Session, gives: dict[str, bool]) -> None:
    maker = factories.user(session, "administrator", "admin")
    token = service.create_link(session, created_by=maker.id, days=1, **gives)
    service.open_link(session, token)
    maker.is_admin = False
    session.flush()
    with pytest.raises(Gone):
        service.open_link(session, token)


def test_accounts_that_cannot_be(session: Session) -> None:
    account(session)
    good = {"name": "B", "password": PASSWORD}
    with pytest.raises(Conflict):
        service.create_user(session, email="ada@example.org", **good)
    with pytest.raises(InvalidInput, match="e-mail"):
        service.create_user(session, email="nobody", **good)
    with pytest.raises(InvalidInput, match="name"):
        service.create_user(session, email="b@example.org", **good | {"name": " "})


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
    factories.user(session, "admin", is_active=False)  # who may not sign in does not count
    session.commit()
    assert admin.post(f"/people/{ada.id}", {}).status_code == 409
    factories.user(session, "admin")
    session.commit()
    assert admin.post(f"/people/{ada.id}", {}).status_code == 303


def start_and_wait_for_its_lock(work: Callable[[], None], factory: sessionmaker[Session]) -> threading.Thread:
    """Runs it in a thread of its own; returns once it waits for another transaction, or has ended."""
    other = threading.Thread(target=work)
    other.start()
    waiting = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
    while other.is_alive():
        with factory() as watch:
            if watch.scalar(waiting):
                break
    return other


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


def test_what_the_database_cannot_hold_is_refused_in_words(sign_in: SignIn, project: Project) -> None:
    admin = sign_in("admin", "administrator")
    answers = [
        admin.get(f"/projects/p/review/{10**30}"),
        admin.post("/projects", {"name": "N", "description": "Nul\0l"}),
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
