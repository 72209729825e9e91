"""Sign-in, roles, one-time links and form protection, over HTTP."""

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from app.accounts import service
from app.db import make_session_factory
from app.errors import Conflict, Gone, InvalidInput
from app.models import AuditEvent, AuthSession, SigninLink, User
from app.projects import service as projects
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
        assert "Open the page again" in refused.text
    assert client.post("/projects", {"name": "New"}).status_code == 303
    # The token of one session is no good in another.
    other = sign_in("admin")
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
    old = sign_in("admin").post("/projects", {"name": "New"}, csrf=False, headers=headers)
    assert old.status_code == 403
    assert f'href="{leads_to}">Back to the page' in old.text


def test_a_sign_in_clears_away_those_that_expired(session: Session) -> None:
    user = account(session, "labeler")
    service.open_session(session, user, days=1)
    session.flush()
    session.execute(AuthSession.__table__.update().values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    token = service.open_session(session, user, days=1)
    session.flush()
    assert session.scalars(select(AuthSession.token_hash)).all() == [service.hash_token(token)]


def test_unused_links_are_listed_and_revoked(sign_in: SignIn, session: Session) -> None:
    admin = sign_in("admin")
    invited = admin.post("/people/invite", {"roles": ["labeler"], "kind": "ai_judge"})
    url = re.search(r'value="http://[^"]+(/join/[\w-]+)"', invited.text)[1]
    listed = admin.get("/people").text
    assert "invites as labeler" in listed
    action = re.search(r'"(/people/links/\d+/revoke)"', listed)[1]
    assert sign_in("labeler").post(action).status_code == 403
    assert admin.post(action).status_code == 303
    assert "Unused links" not in admin.get("/people").text
    assert sign_in().get(url).status_code == 410
    again = admin.post(action)
    assert again.status_code == 409
    assert "used or revoked in the meantime" in again.text
    assert "link.revoked" in session.scalars(select(AuditEvent.action)).all()


def test_refused_people_forms_keep_what_was_chosen(sign_in: SignIn) -> None:
    admin = sign_in("admin")
    refused = admin.post("/people/invite", {"kind": "ai_judge"})
    assert refused.status_code == 422
    form = BeautifulSoup(refused.text, "html.parser").select_one("form[action='/people/invite']")
    assert form.select_one("option[selected]")["value"] == "ai_judge"
    assert form.select("input[checked]") == []
    last = admin.post(f"/people/{admin.user.id}", {"roles": ["operator"], "is_active": "true"})
    own = BeautifulSoup(last.text, "html.parser").select_one(f"form[action='/people/{admin.user.id}']")
    assert [box["value"] for box in own.select("input[checked]")] == ["operator", "true"]
    assert "last admin" in last.text


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


def test_using_one_password_link_ends_the_others(session: Session) -> None:
    user = account(session, "labeler")
    first, second, third = (
        service.create_link(session, roles=[], created_by=None, days=1, user_id=each)
        for each in (user.id, user.id, factories.user(session).id)
    )
    service.redeem_link(session, first, email="", name="", password="another long phrase")
    with pytest.raises(Gone):
        service.redeem_link(session, second, email="", name="", password="an attacker's phrase")
    assert service.open_link(session, third)  # somebody else's


@pytest.mark.parametrize("ends", ["a new password", "switched off"])
def test_a_sign_in_that_was_under_way_ends_with_the_others(
    session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """The old password was right when it was read; by the time it is hashed, it is not."""
    user, factory, hashing = account(session, "labeler"), make_session_factory(engine), service._passwords

    class Slow:
        def verify(self, password: str, kept: str) -> bool:
            is_right = hashing.verify(password, kept)
            with factory.begin() as meanwhile:
                same = meanwhile.get_one(User, user.id)
                if ends == "a new password":
                    same.password_hash = hashing.hash("another good phrase")
                else:
                    service.set_roles(meanwhile, same, same, ["labeler"], is_active=False)
            return is_right

    monkeypatch.setattr(service, "_passwords", Slow())
    with factory.begin() as own:
        assert service.authenticate(own, "ada@example.org", PASSWORD) is None


def test_of_two_password_links_used_at_once_one_is_refused(session: Session, engine: Engine) -> None:
    user = account(session, "labeler")
    tokens = [service.create_link(session, roles=[], created_by=None, days=1, user_id=user.id) for _ in range(2)]
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


@pytest.mark.parametrize("loses", ["role", "account"])
def test_links_die_with_the_right_of_whoever_made_them(sign_in: SignIn, session: Session, loses: str) -> None:
    evil, admin = sign_in("admin", "labeler"), sign_in("admin")
    made = [
        evil.post("/people/invite", {"roles": ["admin"]}),
        evil.post(f"/people/{admin.user.id}/reset"),
        evil.post(f"/people/{evil.user.id}/reset"),
    ]
    urls = [re.search(r'value="http://[^"]+(/join/[\w-]+)"', page.text)[1] for page in made]
    kept = {"roles": ["labeler"], "is_active": "true"} if loses == "role" else {"roles": ["admin"]}
    assert admin.post(f"/people/{evil.user.id}", kept).status_code == 303
    form = {"name": "E", "email": "e@example.org", "password": PASSWORD}
    assert [sign_in().post(url, form).status_code for url in urls] == [410] * 3
    assert "Unused links" not in admin.get("/people").text
    # Not even the right given back brings them back.
    admin.post(f"/people/{evil.user.id}", {"roles": ["admin"], "is_active": "true"})
    assert sign_in().get(urls[0]).status_code == 410


def test_a_link_made_while_its_maker_lost_the_right_is_dead(session: Session) -> None:
    maker = factories.user(session, "admin")
    token = service.create_link(session, roles=["admin"], created_by=maker.id, days=1)
    service.open_link(session, token)
    maker.roles = ["labeler"]
    session.flush()
    with pytest.raises(Gone):
        service.open_link(session, token)


def test_accounts_that_cannot_be(session: Session) -> None:
    account(session, "labeler")
    good = {"name": "B", "password": PASSWORD, "roles": ["labeler"]}
    with pytest.raises(Conflict):
        service.create_user(session, email="ada@example.org", **good)
    with pytest.raises(InvalidInput, match="e-mail"):
        service.create_user(session, email="nobody", **good)
    with pytest.raises(InvalidInput, match="name"):
        service.create_user(session, email="b@example.org", **good | {"name": " "})


def test_a_taken_address_costs_no_hash(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds an invitation can send it so again and again, and sign-ins wait behind every hash."""
    account(session, "labeler")
    monkeypatch.setattr(service, "_passwords", None)
    with pytest.raises(Conflict, match="has an account already"):
        service.create_user(session, email="ada@example.org", name="A", password=PASSWORD, roles=["labeler"])


def test_the_last_admin_stays(sign_in: SignIn, session: Session) -> None:
    admin = sign_in("admin")
    answer = admin.post(f"/people/{admin.user.id}", {"roles": ["labeler"], "is_active": "true"})
    assert answer.status_code == 409
    assert "last admin" in answer.text
    sign_in("admin")
    assert admin.post(f"/people/{admin.user.id}", {"roles": ["labeler"], "is_active": "true"}).status_code == 303
    assert "user.roles_set" in session.scalars(select(AuditEvent.action)).all()


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
            service.create_user(own, email="a@example.org", name="A", password=PASSWORD, roles=["labeler"])
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


def test_two_admins_who_remove_each_other_leave_one(session: Session, engine: Engine) -> None:
    ada, bob = (factories.user(session, "admin").id for _ in range(2))
    session.commit()
    factory = make_session_factory(engine)
    refused: list[Conflict] = []

    def remove_ada() -> None:
        try:
            with factory.begin() as second:
                service.set_roles(second, second.get_one(User, bob), second.get_one(User, ada), [], is_active=True)
        except Conflict as error:
            refused.append(error)

    with factory.begin() as first:
        service.set_roles(first, first.get_one(User, ada), first.get_one(User, bob), [], is_active=True)
        other = start_and_wait_for_its_lock(remove_ada, factory)
    other.join(timeout=60)
    assert len(refused) == 1
    assert session.scalars(select(User.id).where(User.roles.contains(["admin"]))).all() == [ada]


def test_what_the_database_cannot_hold_is_refused_in_words(sign_in: SignIn, session: Session) -> None:
    judged = factories.comparison(session, factories.project(session, slug="p"))
    labeler_id = factories.judgment(session, judged, preference=1).labeler_id
    session.commit()
    admin = sign_in("admin")
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
    text = sign_in("admin").get("/people").text
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
