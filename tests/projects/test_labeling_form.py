"""A project's labeling settings: every setting can be edited, and errors use the page's names."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.documents import LabelingSettings
from app.models import AuditEvent, Comparison, Project, ProjectLabeler
from app.projects import labeling_form
from tests import factories

SignIn = Callable[..., Any]

# Of every control a value that is not the default, as typed, and what is then stored.
CHANGED: dict[str, tuple[str, Any]] = {
    "judged_once": ("50", 0.5),
    "adaptive.on": ("true", None),  # the three below show that it is on
    "adaptive.at_least": ("2", 2),
    "adaptive.at_most": ("7", 7),
    "adaptive.sure": ("95", 0.95),
    "calibration.rate": ("5", 0.05),
    "calibration.threshold": ("80", 0.8),
    "calibration.window": ("30", 30),
    "calibration.least": ("8", 8),
    "repeats.rate": ("10", 0.1),
    "repeats.gap": ("50", 50),
    "quiz_pass": ("90", 0.9),
    "pairs.random": ("0.5", 0.5),
    "pairs.near_miss": ("2", 2.0),
    "pairs.uncertain": ("3", 3.0),
    "pairs.new_against_old": ("4", 4.0),
    "ranking_size": ("4", 4),
    "difficulties.easy": ("2", 2.0),
    "difficulties.hard": ("3", 3.0),
    "difficulties.adversarial": ("4", 4.0),
    "consensus": ("crowd_bt", "crowd_bt"),
    "thumbs": ("true", True),
    "own_figures.agreement": ("", False),
    "own_figures.calibration": ("true", True),
    "own_figures.seconds": ("", False),
}
RULES = {
    "overlap.0.name": "domain",
    "overlap.0.value": "law",
    "overlap.0.overlap": "5",
    "overlap.1.name": "purpose",
    "overlap.1.value": "heldout",
    "overlap.1.overlap": "3",
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return the paths of all fields of a document, including nested ones."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is not None:
            yield from leaves(part, f"{prefix}{name}.")
        else:
            yield prefix + name


def at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document[key]
    return document


def test_no_setting_is_forgotten() -> None:
    every = set(leaves(LabelingSettings))
    assert every == set(labeling_form.CONTROLS) - {"adaptive.on"} | {"overlap.where", "overlap.overlap"}
    assert set(CHANGED) == set(labeling_form.CONTROLS)


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, slug="p")


def shown(html: str) -> dict[str, str]:
    """Return what a browser would send from the form of labeling settings, as the page shows it."""
    form = html.split('id="labeling"', 1)[1].split("</form>", 1)[0]
    fields = {}
    for tag in re.findall(r"<input[^>]*>", form):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if attributes.get("name") and (attributes.get("type") != "checkbox" or " checked" in tag):
            fields[attributes["name"]] = attributes.get("value", "")
    for name, options in re.findall(r'<select[^>]* name="([^"]*)"[^>]*>(.*?)</select>', form, re.S):
        chosen = re.search(r'<option value="([^"]*)" selected', options) or re.search(
            r'<option value="([^"]*)"', options
        )
        assert chosen
        fields[name] = chosen[1]
    return fields


def test_every_setting_is_kept_and_shown(sign_in: SignIn, session: Session, project: Project) -> None:
    admin = sign_in("admin")
    fields = {path: typed for path, (typed, _) in CHANGED.items() if typed} | RULES
    saved = admin.post("/projects/p/settings/labeling", fields)
    assert saved.status_code == 303
    assert "Saved." in admin.get(saved.headers["location"]).text
    session.refresh(project)
    stored = LabelingSettings.model_validate(project.labeling).model_dump()
    default = LabelingSettings().model_dump()
    for path, (_, expected) in CHANGED.items():
        if path != "adaptive.on":
            assert at(stored, path) == expected, path
            assert path.startswith("adaptive") or at(default, path) != expected, "the test must change something"
    assert [tuple(rule.values()) for rule in stored["overlap"]] == [("domain=law", 5), ("purpose=heldout", 3)]
    page = admin.get("/projects/p/settings").text
    sent = shown(page)
    assert {name: value for name, value in sent.items() if name in fields} == fields
    # Sending the page as it is changes nothing.
    assert admin.post("/projects/p/settings/labeling", sent).status_code == 303
    session.refresh(project)
    assert LabelingSettings.model_validate(project.labeling).model_dump() == stored
    events = session.scalars(select(AuditEvent).where(AuditEvent.action == "project.labeling_changed")).all()
    assert len(events) == 1
    assert events[0].details["repeats"] == {"rate": 0.1, "gap": 50}


def test_the_page_of_a_new_project_keeps_the_defaults(sign_in: SignIn, session: Session, project: Project) -> None:
    admin = sign_in("admin")
    assert admin.post("/projects/p/settings/labeling", shown(admin.get("/projects/p/settings").text)).status_code == 303
    session.refresh(project)
    assert LabelingSettings.model_validate(project.labeling) == LabelingSettings()
    assert session.scalars(select(AuditEvent)).all() == []


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ({"calibration.rate": "150"}, "Calibration, “Share of tasks, %”: must be at most 100"),
        ({"calibration.window": "2.5"}, "Calibration, “Recent answers counted”: must be a whole number"),
        ({"repeats.gap": ""}, "Hidden repeats, “Minimum number of other judgments in between”: must be a whole number"),
        ({"repeats.gap": "-1"}, "Hidden repeats, “Minimum number of other judgments in between”: must be at least 1"),
        (
            {"adaptive.on": "true", "adaptive.sure": "50"},
            "Adaptive overlap, “Confidence to stop, %”: must be more than 50",
        ),
        ({"adaptive.on": "true", "adaptive.at_least": "9"}, "Adaptive overlap: the least overlap is above the cap"),
        (
            dict.fromkeys(("pairs.random", "pairs.new_against_old"), "0"),
            "Which pairs are asked: at least one share must",
        ),
        (
            dict.fromkeys(("difficulties.easy", "difficulties.hard", "difficulties.adversarial"), "0"),
            "Which prompts are sampled: at least one share must be above 0",
        ),
        (
            {"overlap.0.name": "purpose", "overlap.0.value": "held-out", "overlap.0.overlap": "3"},
            "Overlap rule 1: there is no purpose “held-out”, but train, heldout, human_eval, calibration",
        ),
        ({"ranking_size": "10"}, "Which pairs are asked, “Responses in a task”: must be at most 9"),
        ({"consensus": "dictator"}, "Consensus, “Method”: is not one of the choices"),
        ({"overlap.0.name": "domain", "overlap.0.value": "law"}, "Overlap rule 1: must be a whole number"),
        (
            {"overlap.1.name": "domain", "overlap.1.overlap": "3"},
            "Overlap rule 1: needs a slice or purpose to apply to",
        ),
        ({"calibration.rate": "nan"}, "Calibration, “Share of tasks, %”: must be"),
    ],
)
def test_what_is_refused_is_named_as_on_the_page_and_comes_back(
    sign_in: SignIn, session: Session, project: Project, typed: dict[str, str], reason: str
) -> None:
    admin = sign_in("admin")
    fields = shown(admin.get("/projects/p/settings").text) | {"repeats.rate": "12.5"} | typed
    refused = admin.post("/projects/p/settings/labeling", fields)
    assert refused.status_code == 422
    assert reason in refused.text
    assert shown(refused.text)["repeats.rate"] == "12.5"
    for name, value in typed.items():
        if name != "consensus":
            assert shown(refused.text)[name] == value
    session.refresh(project)
    assert project.labeling == {}


def test_only_admins_change_it(sign_in: SignIn, project: Project) -> None:
    assert sign_in("labeler", "operator").post("/projects/p/settings/labeling", {}).status_code == 403


def test_another_method_of_consensus_is_applied_at_once(sign_in: SignIn, session: Session, project: Project) -> None:
    """With three steps, “slightly better” counts 1/2 and “much better” 3/2 if strength counts."""
    comparison = factories.comparison(session, project, overlap=2)
    for preference in (3, -1):
        factories.judgment(session, comparison, preference=preference)
    comparison.state = "settled"
    session.commit()
    admin = sign_in("admin")
    fields = shown(admin.get("/projects/p/settings").text)
    admin.post("/projects/p/settings/labeling", fields | {"consensus": "strength_weighted"})
    session.expire_all()
    p_b = session.scalars(select(Comparison.p_b)).one()
    assert p_b == pytest.approx((1.5 + 0.5) / (2 + 1), abs=1e-6)


def test_the_overview_names_who_was_paused_by_calibration(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler = factories.user(session, name="Grace")
    session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.id, state="paused", reason="..."))
    session.commit()
    page = sign_in("admin").get("/projects/p").text
    assert "Grace" in page
    assert f"/projects/p/labelers/{labeler.id}" in page
    assert "Grace" not in sign_in("labeler").get("/projects/p").text
