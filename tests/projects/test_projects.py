"""Projects over HTTP: making one, its settings, its model, and the starter project."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.accounts import service as accounts
from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.labelers import service as labelers
from app.models import AuditEvent, Comparison, ModelVersion, Project, Prompt, Round, Rubric, Run
from app.projects import service, starter
from app.settings import Settings
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
SETTINGS = {
    "name": "Renamed",
    "description": "Better",
    "overlap": "3",
    "lease_minutes": "5",
    "review_threshold": "80",
    "samples_per_prompt": "2",
    "max_new_tokens": "32",
    "temperature": "0.7",
}


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Project!", "my-project"),
        ("  Été 2026 ", "ete-2026"),
        ("E\u0301te\u0301", "ete"),
        ("a--b", "a-b"),
        ("x" * 90, "x" * 60),
        ("Оценка", "otsenka"),
        ("日本", "riben"),
        ("Straße ١٢", "strasse-12"),
        ("!!! …", ""),
        ("", ""),
    ],
)
def test_an_address_is_made_from_the_name(name: str, slug: str) -> None:
    assert service.slugify(name) == slug


def test_line_ends_count_once_as_they_do_in_a_browser(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session, slug="p")
    labeler = factories.user(session)
    factories.judgment(session, factories.comparison(session, project), preference=1, labeler_id=labeler.id)
    session.commit()
    admin = sign_in("admin")
    lines = "x\r\n" * 1000  # 2,000 characters in the browser's count, which is the limit
    saved = admin.post("/projects/p/settings", SETTINGS | {"description": lines})
    assert saved.status_code == 303
    paused = admin.post(f"/projects/p/labelers/{labeler.id}/pause", {"message": lines})
    assert paused.status_code == 303
    session.refresh(project)
    assert project.description == "x\n" * 1000


def test_a_new_project_can_hold_comparisons_at_once(sign_in: SignIn, session: Session) -> None:
    admin = sign_in("administrator")
    assert admin.post("/projects", {"name": "Poems"}).headers["location"] == "/projects/poems"
    project = session.scalars(select(Project)).one()
    assert session.scalars(select(Rubric.version).where(Rubric.project_id == project.id)).all() == [1]
    assert admin.get("/projects/poems").status_code == 200
    twice = admin.post("/projects", {"name": "poems", "description": "Again"})
    assert twice.status_code == 409
    assert "Choose another name" in twice.text
    typed = BeautifulSoup(twice.text, "html.parser")
    assert [typed.select_one(f"#{name}")["value"] for name in ("name", "description")] == ["poems", "Again"]
    assert admin.post("/projects", {"name": "Оценка"}).headers["location"] == "/projects/otsenka"
    nothing = admin.post("/projects", {"name": "!!!"})
    assert nothing.status_code == 422
    assert "at least one letter or digit" in nothing.text
    assert sign_in("labeler", "admin").post("/projects", {"name": "Other"}).status_code == 403


@pytest.mark.parametrize(
    ("address", "like"),
    [("My Data", "my-data"), ("Оценка", "otsenka"), ("a--b", "a-b"), ("a" * 61, "a" * 60), ("", "")],
)
def test_an_address_that_cannot_be_is_not_said_to_exist(session: Session, address: str, like: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"cannot be a project's address\. An address has the letters a-z"
    ) as refused:
        service.create(session, name="Data", slug=address, actor_id=None)
    assert not like or str(refused.value).endswith(f"for example {like}.")


def test_what_another_constraint_refuses_is_not_told_as_a_name_that_is_taken(session: Session) -> None:
    admin = factories.user(session, "admin")
    session.commit()
    with pytest.raises(IntegrityError, match="kind_known"):
        accounts.create_user(session, email="a@example.org", name="A", password="long enough", kind="machine")
    with pytest.raises(IntegrityError, match="fk_labeler_group_project_id"):
        labelers.add_group(session, Project(id=10**12), admin, "Law")


def test_the_start_page_is_the_only_project_or_the_list(sign_in: SignIn, session: Session) -> None:
    client = sign_in("labeler")
    assert "No project yet" in client.get("/").text
    factories.project(session, slug="one")
    session.commit()
    assert client.get("/").headers["location"] == "/projects/one"
    factories.project(session, slug="two", name="<b>Second</b>")
    session.commit()
    listed = client.get("/").text
    assert "&lt;b&gt;Second&lt;/b&gt;" in listed
    assert client.get("/projects/none").status_code == 404


def test_another_review_threshold_says_what_it_moves_before_it_is_saved(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session, slug="p", review_threshold=0.6)
    for agreement in (0.35, 0.4, 0.2):
        factories.comparison(session, project, state="in_review", review_reason="split", agreement=agreement)
    session.commit()
    admin, wanted = sign_in("admin"), SETTINGS | {"review_threshold": "30"}
    asked = admin.post("/projects/p/settings", wanted)
    assert asked.status_code == 200
    assert "2 comparisons in review are settled" in asked.text
    assert session.scalars(select(Comparison.state).distinct()).all() == ["in_review"]
    typed = BeautifulSoup(asked.text, "html.parser")
    shown = typed.select_one("[name=shown_threshold]")["value"]
    assert typed.select_one("#name")["value"] == "Renamed"
    # Another value than the one whose effect was shown is shown first, too.
    assert admin.post("/projects/p/settings", wanted | {"shown_threshold": "0.5"}).status_code == 200
    assert admin.post("/projects/p/settings", wanted | {"shown_threshold": shown}).status_code == 303
    states = select(Comparison.state).order_by(Comparison.agreement)
    assert session.scalars(states).all() == ["in_review", "settled", "settled"]
    session.refresh(project)
    assert project.review_threshold == 0.3


@pytest.mark.parametrize(
    ("address", "first", "second"),
    [
        ("settings", {"overlap": "5"}, {"name": "Later"}),
        ("settings/labeling", {"consensus": "dawid_skene"}, {"thumbs": "true"}),
    ],
)
def test_settings_from_an_older_page_undo_nobodys_change(
    sign_in: SignIn, session: Session, address: str, first: dict[str, str], second: dict[str, str]
) -> None:
    project = factories.project(session, slug="p")
    session.commit()
    admin, other = sign_in("admin"), sign_in("admin")

    def form(page: str) -> dict[str, str]:
        shown = BeautifulSoup(page, "html.parser").select_one(f"form[action='/projects/p/{address}']")
        fields = {each["name"]: each.get("value", "") for each in shown.select("input:not([type=checkbox])")}
        fields |= {each["name"]: each["value"] for each in shown.select("input[checked]")}
        fields |= {
            each["name"]: each.select_one("option[selected]")["value"]
            for each in shown.select("select:has([selected])")
        }
        return fields | {each["name"]: each.text for each in shown.select("textarea")}

    opened = form(admin.get("/projects/p/settings").text)
    assert other.post(f"/projects/p/{address}", opened | first).status_code == 303
    refused = admin.post(f"/projects/p/{address}", opened | second)
    assert refused.status_code == 409
    assert "Nothing was saved" in refused.text
    again = form(refused.text)
    assert [again[name] for name in second] == list(second.values())
    session.refresh(project)
    before = (project.overlap, project.labeling.get("consensus"))
    assert before == ((5, None) if address == "settings" else (project.overlap, "dawid_skene"))
    # Sent again, it is what was chosen.
    assert admin.post(f"/projects/p/{address}", again).status_code == 303
    shown = form(admin.get("/projects/p/settings").text)
    assert shown == again | {"seen": shown["seen"]}


def test_settings_are_kept_and_checked(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session, slug="p")
    session.commit()
    admin = sign_in("admin")
    saved = admin.post("/projects/p/settings", SETTINGS)
    assert saved.status_code == 303
    assert "Saved." in admin.get(saved.headers["location"]).text
    assert "Saved." not in admin.get("/projects/p/settings").text
    session.refresh(project)
    assert (project.name, project.overlap, project.lease_minutes, project.review_threshold) == ("Renamed", 3, 5, 0.8)
    assert project.generation["max_new_tokens"] == 32
    assert project.generation["temperature"] == 0.7
    refused = admin.post("/projects/p/settings", SETTINGS | {"overlap": "0", "name": "Typed", "temperature": "1.5"})
    assert refused.status_code == 422
    assert "overlap: Input should be greater than or equal to 1" in refused.text
    form = BeautifulSoup(refused.text, "html.parser")
    assert [form.select_one(f"#{name}")["value"] for name in ("name", "overlap", "temperature")] == [
        "Typed",
        "0",
        "1.5",
    ]
    session.refresh(project)
    assert project.name == "Renamed"
    assert "project.settings_changed" in session.scalars(select(AuditEvent.action)).all()


def test_a_projects_model_can_be_changed_until_a_run_has_used_it(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session, slug="p")
    session.commit()
    admin = sign_in("admin")
    assert admin.post("/projects/p/model", {"model": " "}).status_code == 422
    assert admin.post("/projects/p/model", {"model": "models/some-modle"}).status_code == 303
    session.refresh(project)
    model = session.scalars(select(ModelVersion)).one()
    assert (model.role, model.base, model.name) == ("base", "models/some-modle", "some-modle")
    assert project.base_model_id == project.policy_id == model.id
    assert "models/some-modle" in admin.get("/projects/p/settings").text

    # The name was wrong: the first run fails.
    run = factories.run(session, project, "sample", state="failed")
    session.commit()
    assert "until a run has used it" in admin.get("/projects/p/settings").text
    assert admin.post("/projects/p/model", {"model": "models/some-model"}).status_code == 303
    session.refresh(project)
    assert project.base_model_id == project.policy_id == project.reference_id != model.id

    for state in ("queued", "running", "succeeded"):
        run.state = state
        session.commit()
        assert admin.post("/projects/p/model", {"model": "other"}).status_code == 409
        assert "until a run has used it" not in admin.get("/projects/p/settings").text

    # A round that freezes what it reads has used no model yet, but it began with this one.
    run.state = "failed"
    factories.run(session, project, "freeze", state="running", round_id=factories.round_(session, project).id)
    session.scalars(select(Round)).one().state = "freezing"
    session.commit()
    refused = admin.post("/projects/p/model", {"model": "other"})
    assert (refused.status_code, "A round is under way" in refused.text) == (409, True)
    assert "until a run has used it" not in admin.get("/projects/p/settings").text


def test_a_folder_without_a_model_is_refused(
    sign_in: SignIn, session: Session, settings: Settings, tmp_path: Path
) -> None:
    factories.project(session, slug="p")
    session.commit()
    admin, folder = sign_in("admin"), tmp_path / "model"
    refused = admin.post("/projects/p/model", {"model": str(folder)})
    assert refused.status_code == 422
    assert f"There is no model in {folder}." in refused.text
    folder.mkdir()
    assert admin.post("/projects/p/model", {"model": str(folder)}).status_code == 422
    (folder / "config.json").write_text("{}")
    assert admin.post("/projects/p/model", {"model": str(folder)}).status_code == 303
    # The web service does not see the disk of the worker.
    assert admin.post("/projects/p/model", {"model": str(tmp_path / "workers" / "model")}).status_code == 303


def test_the_starter_project_is_complete_and_made_once(session: Session, tmp_path: Path) -> None:
    assert starter.is_first_run(session)
    project = starter.create(session)
    assert not starter.is_first_run(session)
    # Every line of the content becomes one prompt; calibration comparisons refer to prompts that are there.
    lines = (starter.CONTENT / "prompts.jsonl").read_text().splitlines()
    assert session.scalar(select(func.count()).select_from(Prompt)) == len(lines)
    golds = session.scalars(select(Comparison.gold).order_by(Comparison.id)).all()
    assert len(golds) == 6
    assert None not in golds
    (tmp_path / "model").mkdir()
    starter.use_model(session, ArtifactStore(tmp_path), project, "Org/Tiny-Model", "model")
    assert session.scalars(select(Run.kind)).all() == ["sample"]
    assert session.scalars(select(ModelVersion.name)).all() == ["Tiny-Model"]
