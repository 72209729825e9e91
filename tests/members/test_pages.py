"""The pages about people, over HTTP: members of a project, links into it, and what people see of other projects."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup
from httpx import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import service as accounts
from app.models import AuditEvent, Project, ProjectMember, User
from tests import factories
from tests.accounts.people import PASSWORD, link_on
from tests.conftest import SignedIn
from tests.demonstrations.desk import task

SignIn = Callable[..., SignedIn]
HERE = "/projects/p/members"


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p", name="Poems")
    factories.published_rubric(session, project)
    session.commit()
    return project


@pytest.fixture
def admin(session: Session, project: Project, sign_in: SignIn) -> SignedIn:
    return sign_in(user=factories.member(session, project, "admin", name="Ada"))


def words(page: Response) -> str:
    return " ".join(BeautifulSoup(page.text, "html.parser").select_one("main").get_text(" ").split())


def roles(session: Session, project: Project) -> dict[str, list[str]]:
    session.expire_all()
    found = select(User.name, ProjectMember.roles).join(User, User.id == ProjectMember.user_id)
    return dict(session.execute(found.where(ProjectMember.project_id == project.id)).all())


def test_an_admin_adds_changes_and_removes_members(session: Session, project: Project, admin: SignedIn) -> None:
    bo = factories.account(session, name="<b>Bo</b>", email="bo@example.org")
    session.commit()
    assert "1 member" in words(admin.get(HERE))
    nobody = admin.post(HERE, {"email": "no@example.org", "roles": ["operator"]})
    assert nobody.status_code == 404
    form = BeautifulSoup(nobody.text, "html.parser").select_one(f"form[action='{HERE}']")
    assert form.select_one("#email")["value"] == "no@example.org"
    assert [box["value"] for box in form.select("input[checked]")] == ["operator"]
    assert admin.post(HERE, {"email": "bo@example.org", "roles": ["labeler"]}).headers["location"] == HERE
    listed = admin.get(HERE).text
    assert "&lt;b&gt;Bo&lt;/b&gt;" in listed
    assert admin.post(f"{HERE}/{bo.id}", {"roles": ["operator", "admin"]}).status_code == 303
    assert roles(session, project) == {"Ada": ["admin"], "<b>Bo</b>": ["admin", "operator"]}
    assert admin.post(f"{HERE}/{bo.id}", {}).status_code == 422
    assert admin.post(f"{HERE}/{bo.id}/remove").headers["location"] == HERE
    assert admin.post(f"{HERE}/{bo.id}/remove").status_code == 404
    last = admin.post(f"{HERE}/{admin.user.id}", {"roles": ["labeler"]})
    assert last.status_code == 409
    assert "last admin" in last.text
    assert "member.removed" in session.scalars(select(AuditEvent.action)).all()


@pytest.mark.parametrize("here", [HERE, "/people"])
def test_a_long_list_of_people_comes_in_pages_and_is_searched(
    session: Session, project: Project, sign_in: SignIn, here: str
) -> None:
    """With ten thousand people, a page used to take five seconds of a core and eleven megabytes."""
    ada = factories.member(session, project, "admin", name="Ada", is_admin=True)
    for n in range(150):
        factories.member(session, project, "labeler", name=f"Bo {n:03}", email=f"bo{n:03}@example.org")
    session.commit()
    client = sign_in(user=ada)

    def shown(address: str) -> list[str]:
        return re.findall(r"<bdi>((?:Ada|Bo).*?)</bdi>", client.get(address).text)

    names = ["Ada", *(f"Bo {n:03}" for n in range(150))]
    assert shown(here) == names[:100]
    assert re.findall(r'class="pager".*?href="([^"]+)"', client.get(here).text, re.S) == [f"{here}?page=1"]
    assert shown(f"{here}?page=1") == names[100:]
    assert shown(f"{here}?page=2") == []
    assert shown(f"{here}?text=+BO+12") == names[121:131]
    assert shown(f"{here}?text=bo007%40") == ["Bo 007"]
    found = client.get(f"{here}?text=bo007%40&page=0").text
    action = re.search(rf'action="({re.escape(here)}/\d+\?text=bo007%40)"', found)[1]
    form = {"roles": ["operator"], "is_active": "true"}
    assert client.post(action, form).headers["location"] == f"{here}?text=bo007%40"


def test_who_gives_up_a_role_or_leaves_is_led_to_what_they_still_see(
    session: Session, project: Project, admin: SignedIn
) -> None:
    factories.member(session, project, "admin")
    session.commit()
    to = admin.post(f"{HERE}/{admin.user.id}", {"roles": ["labeler"]}).headers["location"]
    assert (to, admin.get(to).status_code, admin.get(HERE).status_code) == ("/projects/p", 200, 403)
    session.get_one(ProjectMember, (project.id, admin.user.id)).roles = ["admin"]
    session.commit()
    assert admin.post(f"{HERE}/{admin.user.id}/remove").headers["location"] == "/"
    assert admin.get("/projects/p").status_code == 404


def test_a_link_invites_into_its_project_alone(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    other = factories.project(session, name="Other")
    session.commit()
    refused = admin.post(f"{HERE}/invite", {"kind": "simulated"})
    assert refused.status_code == 422
    url = link_on(admin.post(f"{HERE}/invite", {"roles": ["labeler", "operator"]}))
    assert "invites as labeler, operator by Ada" in words(admin.get(HERE))
    guest = sign_in()
    assert "as labeler, operator in the project Poems ." in words(guest.get(url))
    form = {"name": "Bo", "email": "bo@example.org", "password": PASSWORD, "roles": "admin", "project_id": other.id}
    assert guest.post(url, form).headers["location"] == "/projects/p"
    assert roles(session, project)["Bo"] == ["labeler", "operator"]
    assert guest.get("/").headers["location"] == "/projects/p"
    assert guest.get(f"/projects/{other.slug}").status_code == 404
    assert "Unused links" not in admin.get(HERE).text


def test_an_admin_revokes_links_into_their_own_project_alone(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    other = factories.project(session, slug="q")
    theirs = sign_in(user=factories.member(session, other, "admin"))
    session.commit()
    url = link_on(admin.post(f"{HERE}/invite", {"roles": ["labeler"]}))
    action = re.search(rf'"({HERE}/links/\d+/revoke)"', admin.get(HERE).text)[1]
    assert theirs.post(action.replace("/p/", "/q/")).status_code == 409
    assert sign_in().get(url).status_code == 200
    assert admin.post(action).status_code == 303
    assert sign_in().get(url).status_code == 410


def test_somebody_signed_in_joins_with_their_account(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    bo = sign_in(user=factories.account(session, name="Bo"))
    url = link_on(admin.post(f"{HERE}/invite", {"roles": ["labeler"]}))
    assert bo.get("/projects/p").status_code == 404
    page = bo.get(url)
    assert "You are signed in as Bo" in words(page)
    assert 'name="password"' not in page.text
    assert bo.post(url).headers["location"] == "/projects/p"
    assert bo.get("/projects/p/label").status_code == 200
    assert bo.post(url).status_code == 410
    again = link_on(admin.post(f"{HERE}/invite", {"roles": ["operator"]}))
    bo.post(again)
    assert roles(session, project)["Bo"] == ["labeler", "operator"]
    judge = link_on(admin.post(f"{HERE}/invite", {"roles": ["admin"], "kind": "ai_judge"}))
    refused = bo.post(judge)
    assert refused.status_code == 409
    assert "another kind of account" in refused.text
    assert sign_in().get(judge).status_code == 200  # it was not used up
    assert session.scalar(select(User.id).where(User.name == "Bo")) == bo.user.id


def test_somebody_with_an_account_signs_in_from_the_link_and_comes_back(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    accounts.create_user(session, email="bo@example.org", name="Bo", password=PASSWORD)
    session.commit()
    url = link_on(admin.post(f"{HERE}/invite", {"roles": ["labeler"]}))
    visitor = sign_in()
    way = BeautifulSoup(visitor.get(url).text, "html.parser").select_one("main a")["href"]
    assert parse_qs(urlsplit(way).query) == {"next": [url]}
    form = BeautifulSoup(visitor.get(way).text, "html.parser").select_one("form")
    sent = {field["name"]: field.get("value", "") for field in form.select("input")}
    back = visitor.post("/sign-in", sent | {"email": "bo@example.org", "password": PASSWORD}).headers["location"]
    assert back == url
    assert visitor.post(back).headers["location"] == "/projects/p"
    assert roles(session, project)["Bo"] == ["labeler"]


def test_an_administrator_puts_somebody_into_a_project(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    chief = sign_in("administrator")
    assert chief.get("/projects/p").status_code == 404
    assert "Poems" not in chief.get("/projects").text
    assert "Poems" in chief.get("/people").text
    place = {"email": chief.user.email, "project": "p", "roles": ["admin"]}
    for wrong in ({"project": "none"}, {"roles": []}):
        refused = chief.post("/people/members", place | wrong)
        assert refused.status_code == 422
    assert chief.post("/people/members", place | {"email": "no@example.org"}).status_code == 404
    assert chief.post("/people/members", place).headers["location"] == "/people"
    assert chief.get(HERE).status_code == 200
    by = select(AuditEvent.actor_id).where(AuditEvent.action == "member.added", AuditEvent.project_id == project.id)
    assert session.scalars(by).all() == [chief.user.id]
    assert chief.post("/people/members", place | {"email": admin.user.email, "roles": ["labeler"]}).status_code == 303
    assert roles(session, project)["Ada"] == ["labeler", "admin"]
    # An admin of the project who is no administrator of the service reads no such page.
    assert admin.get("/people").status_code == 403


def test_an_admin_reads_no_name_of_an_administrator_from_outside(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    chief = sign_in(user=factories.account(session, name="Chief", is_admin=True))
    chief.post("/people/invite", {"project": "p", "roles": ["labeler"]})
    listed = words(admin.get(HERE))
    assert "invites as labeler by an administrator" in listed
    assert "Chief" not in listed


def test_a_new_project_has_its_maker_alone(session: Session, project: Project, sign_in: SignIn) -> None:
    maker, other = (sign_in(user=factories.account(session, is_admin=True)) for _ in range(2))
    assert maker.post("/projects", {"name": "Mine"}).headers["location"] == "/projects/mine"
    assert maker.get("/projects/mine/members").status_code == 200
    assert other.get("/projects/mine").status_code == 404
    assert maker.get("/").headers["location"] == "/projects/mine"


def test_people_of_two_projects_see_nothing_of_each_other(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    """One person labels in both projects. Staff of one project see nothing of the other, nor of its people."""
    other = factories.project(session, slug="q", name="Quatrains")
    factories.published_rubric(session, other)
    both = factories.member(session, project, "labeler", name="Both")
    factories.join(session, other, both, "labeler")
    hidden = factories.member(
        session, other, "labeler", "admin", "operator", name="Harriet", email="harriet@example.org"
    )
    model = factories.model(session, other, "base", base="models/secret")
    other.base_model_id = model.id
    for each, n in ((project, 1), (other, 3)):
        for _ in range(n):
            row = factories.comparison(session, each, state="settled")
            factories.judgment(session, row, preference=1, labeler_id=both.id)
    factories.comparison(session, project, state="in_review", review_reason="split")
    session.commit()
    session.get_one(ProjectMember, (project.id, admin.user.id)).roles = ["labeler", "admin", "operator"]
    session.commit()
    names = "labelers labelers/groups assignment settings agreement quiz/people data rounds/new review".split()
    paths = ["/", "/projects", "/projects/p", HERE, f"/projects/p/labelers/{both.id}"]
    paths += [f"/projects/p/{name}" for name in names]
    for path in paths:
        text = admin.get(path).text
        for secret in ("Quatrains", "/projects/q", "Harriet", "harriet@example.org", "models/secret"):
            assert secret not in text, (path, secret)
    assert admin.get(f"/projects/p/labelers/{hidden.id}").status_code == 404
    # Whoever staffs both reads what the person does in both.
    factories.join(session, other, session.get_one(User, admin.user.id), "operator")
    session.commit()
    assert "/projects/q/labelers/" in admin.get(f"/projects/p/labelers/{both.id}").text


def test_lists_of_people_are_of_the_projects_labelers(
    session: Session, project: Project, admin: SignedIn, sign_in: SignIn
) -> None:
    """For groups, assignment, reviews, and the labelers' page. People who judged and left keep their figures."""
    now = factories.member(session, project, "labeler", name="Nora")
    gone = factories.account(session, name="Gone Glenn")
    factories.member(session, project, "operator", name="Otto")
    row = factories.comparison(session, project, state="in_review", review_reason="split", overlap=2)
    factories.judgment(session, row, preference=1, labeler_id=gone.id)
    admin.post("/projects/p/labelers/groups", {"name": "Experts"})
    session.commit()
    review = f"review/{row.id}"
    names = ("labelers", "labelers/groups", "assignment", review)
    shown = {name: admin.get(f"/projects/p/{name}").text for name in names}
    for name, text in shown.items():
        assert "Nora" in text, name
        assert ("Gone Glenn" in text) == (name in ("labelers", review)), name
        assert "Otto" not in text, name
    option = f'<option value="{gone.id}"'
    assert option not in shown[review]
    assert f"/projects/p/labelers/{now.id}" in shown["labelers"]
    base = "/projects/p/labelers"
    group = re.search(r"labelers/groups/(\d+)/members", shown["labelers/groups"])[1]
    assert admin.post(f"{base}/groups/{group}/members", {"labeler_ids": [gone.id]}).status_code == 404
    assert admin.post("/projects/p/assignment", {"owner": f"labeler:{gone.id}"}).status_code == 404


def test_start_labeling_leads_to_a_project_of_ones_own(session: Session, project: Project, sign_in: SignIn) -> None:
    other = factories.project(session, slug="q", name="Quatrains")
    for each in (project, other):
        factories.comparison(session, each)
        task(session, each)
    mine = sign_in(user=factories.member(session, other, "labeler"))
    assert mine.get("/label").headers["location"] == "/projects/q/label"
    for client in (
        sign_in(user=factories.member(session, other, "admin")),
        sign_in(user=factories.account(session)),
    ):
        nothing = client.get("/label")
        assert nothing.status_code == 200
        assert "Quatrains" not in nothing.text
        assert "Nothing is waiting for you" in nothing.text


def test_whoever_is_a_member_of_nothing_is_told_so(sign_in: SignIn, session: Session, project: Project) -> None:
    nobody = sign_in(user=factories.account(session))
    assert "not a member of any project" in words(nobody.get("/"))
