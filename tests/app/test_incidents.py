"""Incidents that happened to similar tools: one attack of each class, tried on this service."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.main import ROUTERS, create_app
from app.models import (
    Comparison,
    Demonstration,
    DemonstrationTask,
    Judgment,
    Lease,
    ModelVersion,
    ProjectMember,
    RedTeamAttempt,
    Round,
    Run,
    SigninLink,
    User,
)
from app.render import ROOT
from app.settings import Settings
from tests import factories
from tests.app.test_every_route import ROUTES, WHO, P, fields_of
from tests.app.test_stored_markup import NO_PAGES
from tests.app.world import World, build
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
OWNED = (Comparison, Judgment, Lease, Demonstration, DemonstrationTask, RedTeamAttempt, Round, Run, ModelVersion)


@pytest.fixture
def world(session: Session, settings: Settings) -> World:
    return build(session, settings.artifacts_root)


# ---- a secret that everybody knows -----------------------------------------------------------------------------------


def test_no_secret_is_the_same_in_two_installations(tmp_path: Path) -> None:
    homes = [Settings(home=tmp_path / name, secret_key=None, _env_file=None) for name in "ab"]
    keys = {settings.signing_key for settings in homes}
    assert len(keys) == 2
    assert min(map(len, keys)) >= 64
    for settings in homes:
        assert (settings.home / "secret_key").stat().st_mode & 0o077 == 0
    secret = re.compile("key|password|token|secret")
    assert {name: field.default for name, field in Settings.model_fields.items() if secret.search(name)} == {
        "secret_key": None,
        "sampling_key": None,
    }


# ---- taking over what is somebody else's -----------------------------------------------------------------------------


def test_a_labeler_cannot_reach_other_peoples_work_by_its_id(sign_in: SignIn, session: Session, world: World) -> None:
    other = sign_in("labeler")
    own = {"judgment_id", "lease_id", "attempt", "demonstration_id", "attempt_id"}

    before = rows(session)
    for route in ROUTES:
        if own & set(route.parameters) and "l" in WHO[route.name]:
            address, refused = route.address(world.values), (403, 404)
            if route.method == "POST":
                answer, refused = other.post(address, {"text": "mine", "preference": "1"}), (403, 404, 409, 410, 422)
            else:
                answer = other.get(address)
            assert answer.status_code in refused, (route, answer.status_code)
    assert rows(session) == before


def rows(session: Session) -> list[object]:
    """Return everything that belongs to people."""
    session.expire_all()
    return [session.execute(select(each.__table__).order_by(each.id)).all() for each in OWNED]


def test_what_belongs_to_one_project_is_not_found_in_another(sign_in: SignIn, session: Session, world: World) -> None:
    factories.roster.clear()  # nobody in the world is a member of the other project
    other = factories.project(session)
    factories.published_rubric(session, other)
    everybody = sign_in(user=factories.member(session, other, "labeler", "admin", "operator"))
    before = rows(session)
    for route in ROUTES:
        of_every_project = {"project_slug", "version", "form", "monitor_name", "name"}
        if route.path.startswith(f"{P}/") and set(route.parameters) - of_every_project:
            address = route.address(world.values | {"project_slug": other.slug})
            answer = everybody.post(address) if route.method == "POST" else everybody.get(address)
            # Skipping a task that no longer exists is not an error.
            assert answer.status_code in (403, 404, 409, 410, 422) or route.path.endswith("write/{task_id}/skip"), route
            assert "boom()" not in answer.text, route
    assert rows(session) == before


def test_nobody_becomes_an_admin_without_one(sign_in: SignIn, session: Session, world: World) -> None:
    """Not with their own form, a guessed link, or a link for a lower role."""
    labeler, people = sign_in("labeler"), f"/projects/{world.project.slug}/members"
    grab = {"roles": ["admin"], "is_admin": "true", "is_active": "true", "kind": "person"}
    grab |= {"user_id": str(labeler.user.id), "project": world.project.slug, "email": labeler.user.email}
    for address in (f"/people/{labeler.user.id}", "/people/invite", "/people/members"):
        assert labeler.post(address, grab).status_code == 403
    for address in (people, f"{people}/invite", f"{people}/{labeler.user.id}", f"/people/{labeler.user.id}/reset"):
        assert labeler.post(address, grab).status_code == 403
    # Nor does an admin of a project become an administrator of the service.
    admin = sign_in("admin")
    assert admin.post(f"/people/{admin.user.id}", grab).status_code == 403
    page = admin.post(f"{people}/invite", {"roles": ["labeler"], "is_admin": "true"}).text
    address = re.search(r'value="http://[^"]+(/join/[\w-]+)"', page)[1]
    form = grab | {"name": "Eve", "email": "eve@example.org", "password": "correct horse battery"}
    assert sign_in().post(address, form).status_code == 303
    session.expire_all()
    eve = select(ProjectMember.roles, User.is_admin).join(User, User.id == ProjectMember.user_id)
    assert session.execute(eve.where(User.email == "eve@example.org")).all() == [(["labeler"], False)]


def test_nobody_signs_up(sign_in: SignIn, session: Session, world: World) -> None:
    visitor, people = sign_in(), select(func.count()).select_from(User)
    before = session.scalar(people)
    form = {"name": "Eve", "email": "eve@example.org", "password": "correct horse battery", "roles": "labeler"}
    hashes = session.scalars(select(SigninLink.token_hash)).all()
    for token in ("", "x", "../sign-in", "null", *hashes):
        assert visitor.post(f"/join/{token}", form).status_code in (404, 405, 410, 422)
    for address in ("/sign-in", "/people", "/people/invite", "/register", "/sign-up"):
        assert visitor.post(address, form).status_code in (401, 404, 405, 422)
    assert session.scalar(people) == before


# ---- filters that reach further than their field ---------------------------------------------------------------------


def test_no_filter_reaches_what_it_does_not_name_and_no_page_tells_a_secret(
    sign_in: SignIn, session: Session, world: World
) -> None:
    for user in session.scalars(select(User)):
        user.password_hash = f"$argon2id$never-shown-{user.id}"
    session.commit()
    kept = ["never-shown", *session.scalars(select(SigninLink.token_hash))]
    names = ["password_hash", "labeler__password_hash__startswith", "author.password_hash", "user[password_hash]"]
    names += ["order_by", "sort", "filter", "fields", "include", "expand", "q", "where"]
    reach = dict.fromkeys(names, "$argon2id$nothing-begins-so")
    staff = sign_in("admin", "operator", "labeler", "administrator")
    for route in ROUTES:
        if route.method == "GET" and WHO[route.name] != "l" and not route.path.startswith(("/join", "/sign")):
            address = route.address(world.values)
            plain, reaching = staff.get(address), staff.get(address, params=reach)
            assert reaching.status_code == plain.status_code, route
            if route.path not in NO_PAGES:  # times and form keys differ
                assert len(plain.text.splitlines()) == len(reaching.text.splitlines()), route
            assert not any(secret in answer.text for answer in (plain, reaching) for secret in kept), route


# ---- addresses that the service is made to ask -----------------------------------------------------------------------


def test_nobody_can_name_an_address_that_the_service_asks() -> None:
    """Only the operator's setting names the sampling server, so no later name can point to another server."""
    names = {name for router in ROUTERS for _route, names in fields_of(router) for name in names}
    assert {name for name in names if re.search("url|server|host|endpoint|webhook|callback", name)} == set()


@pytest.mark.parametrize(
    "model",
    ["http://169.254.169.254/latest", "file:///etc/passwd", "//host/share", "/etc", "../secret", "a/../../b", "\0"],
)
def test_a_project_names_no_model_outside_the_allowed_folders(
    app: FastAPI, sign_in: SignIn, session: Session, model: str
) -> None:
    project = factories.project(session)
    session.commit()
    refused = sign_in("admin").post(f"/projects/{project.slug}/model", {"model": model})
    assert refused.status_code == 422
    assert "Models are not read from there" in refused.text or not model.strip("\0")


def test_a_project_names_no_model_that_another_project_made(
    app: FastAPI, sign_in: SignIn, session: Session, settings: Settings
) -> None:
    """All projects share one store, and its locations are numbered."""
    theirs, mine = factories.project(session, name="Theirs"), factories.project(session)
    run = factories.run(session, theirs, state="succeeded")
    made = settings.artifacts_root / "models" / f"run-{run.id}"
    (made / "inner").mkdir(parents=True)
    (made / "report.json").write_text('{"accuracy": 0.123}')
    (settings.artifacts_root / "link").symlink_to(made)
    admin = factories.member(session, mine, "admin", is_admin=True)
    factories.join(session, theirs, admin, "labeler")  # labelers see no models
    session.commit()
    client, address = sign_in(user=admin), f"/projects/{mine.slug}/model"
    name = f"run-{run.id}"
    for location in (f"models/{name}", f"models//x/../{name}/", f"models/{name}/inner", str(made), "link",
                     f"checkpoints/{name}", f"models/run-{run.id + 1}"):  # fmt: skip
        refused = client.post(address, {"model": location})
        assert (refused.status_code, "Models are not read from there" in refused.text) == (422, True), location
    session.get_one(ProjectMember, (theirs.id, admin.id)).roles = ["operator"]
    session.commit()
    assert client.post(address, {"model": f"models/{name}"}).status_code == 303


# ---- files that run code when they are read --------------------------------------------------------------------------


def test_nothing_reads_a_pickle() -> None:
    """`tests/trainer/test_bad_input.py` tests the error for such a model."""
    unpickles = re.compile(r"torch\.load\(|\bpickle\b\.|joblib|dill|allow_pickle=True|weights_only=False|yaml\.load\(")
    files = [path for folder in ("app", "trainer") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert [path.name for path in files if unpickles.search(path.read_text())] == []


# ---- files outside the folders that are served -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/static/..%2fapp/settings.py", "/static/%2e%2e/pyproject.toml", "/static//etc/passwd", "/static/..%5capp"]
)
def test_no_file_outside_is_served(sign_in: SignIn, path: str) -> None:
    assert sign_in().get(path).status_code == 404


def test_the_service_tells_nobody_how_it_is_built(settings: Settings) -> None:
    app = create_app(settings, settings.database_url or "")
    assert {route.path for route in app.routes if hasattr(route, "path")} == {"/healthz", "/static"}  # no /docs
