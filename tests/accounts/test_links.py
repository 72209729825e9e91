"""One-time links: invitations and password links can be used once, while their maker has the right to make them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from bs4 import BeautifulSoup
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.accounts import service
from app.db import make_session_factory
from app.errors import Gone
from app.models import AuditEvent, Project, ProjectMember, SigninLink, User
from tests import factories
from tests.accounts.people import PASSWORD, account, link_on
from tests.conftest import SignedIn
from tests.waiting import start_and_wait_for_its_lock

SignIn = Callable[..., SignedIn]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p", name="Poems")
    session.commit()
    return project


def roles_of(session: Session, email: str) -> dict[str, list[str]]:
    """Return a person's roles by project."""
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
        ({"roles": ["labeler"]}, "no project is chosen"),
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
    assert roles_of(session, "judge@example.org") == {}  # an account that is not a member of any project yet


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
    assert service.open_link(session, third)  # somebody else's link


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
    # They stay dead even if their maker gets the right back.
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
