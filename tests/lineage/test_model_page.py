"""A model's page: its chain of parents, its card, and the report in its folder."""

import json
from collections.abc import Callable

import pytest
from bs4 import BeautifulSoup
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.lineage import queries
from app.lineage.views import tables
from app.models import ModelVersion, Project
from tests import factories
from tests.conftest import SignedIn

REPORT = {
    "model": {"heads": ["reward"], "gains": [1.25], "pooling": "last"},
    "heldout": {
        "pairs": 120,
        "accuracy": 0.71,
        "by_strength": {"1": {"pairs": 40, "accuracy": 0.6}, "2": {"pairs": 80, "accuracy": 0.75}},
        "calibration": {
            "ece": 0.04,
            "reliability": [
                {"confidence": 0.55, "accuracy": 0.5, "pairs": 60},
                {"confidence": 0.85, "accuracy": 0.9, "pairs": 60},
            ],
        },
    },
    "probes": {"padding": {"pairs": 5, "shift": -0.25, "note": None}},
}


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    session.commit()
    return project


def made(session: Session, project: Project, parent: ModelVersion, number: int) -> ModelVersion:
    round_ = factories.round_(session, project, number=number, policy_before_id=parent.id)
    run = factories.run(session, project, round_id=round_.id)
    return factories.model(
        session, project, name=f"policy-{number}", parent_id=parent.id, run_id=run.id, card={"algorithm": "dpo"}
    )


def test_nested_figures_become_tables() -> None:
    found = {table.title: table for table in tables(REPORT)}
    assert list(found) == [
        "model",
        "heldout",
        "heldout: by strength",
        "heldout: calibration",
        "heldout: calibration: reliability",
        "probes: padding",
    ]
    assert [cell.text for cell in found["heldout"].rows[0]] == ["pairs", "120"]
    assert found["heldout: by strength"].columns == ("", "pairs", "accuracy")
    assert [[cell.text for cell in row] for row in found["heldout: by strength"].rows] == [
        ["1", "40", "0.600"],
        ["2", "80", "0.750"],
    ]
    diagram = found["heldout: calibration: reliability"]
    assert diagram.columns == ("confidence", "accuracy", "pairs")
    assert [[cell.share for cell in row] for row in diagram.rows] == [[0.55, 0.5, None], [0.85, 0.9, None]]
    assert [cell.text for row in found["probes: padding"].rows for cell in row] == [
        "pairs", "5", "shift", "-0.250", "note", "–",
    ]  # fmt: skip


@pytest.mark.parametrize("odd", [{}, {"a": {}}, {"a": []}, {"a": {"b": {"c": {"d": 1}}}}, {"a": [1, "x", None]}])
def test_any_nesting_can_be_shown(odd: dict[str, object]) -> None:
    for table in tables(odd):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_page_shows_chain_card_report_and_readme(
    app: FastAPI, session: Session, project: Project, sign_in: Callable[..., SignedIn]
) -> None:
    base = factories.model(session, project, "base", name="the-base")
    first = made(session, project, base, 1)
    second = made(session, project, first, 2)
    second.base = "models/run-7"
    session.commit()
    folder = app.state.store.root / "models/run-7"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(REPORT))
    (folder / "README.md").write_text(
        "# Reward model\n\n<script>alert(1)</script>\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    client = sign_in("operator")
    answer = client.get(f"/projects/{project.slug}/models/{second.id}")
    assert answer.status_code == 200
    page = BeautifulSoup(answer.text, "html.parser")
    assert [item.get_text(" ", strip=True).split()[0] for item in page.select(".chain li")] == [
        "policy-2",
        "policy-1",
        "the-base",
    ]
    assert [meter["value"] for meter in page.select("meter")] == ["0.55", "0.5", "0.85", "0.9"]
    assert "<script>alert" not in answer.text
    assert page.select(".prose table")
    assert "policy-2" in client.get(f"/projects/{project.slug}/models/{first.id}").text  # made from it


def test_models_without_papers_have_a_page_and_others_projects_have_none(
    app: FastAPI, session: Session, project: Project, sign_in: Callable[..., SignedIn]
) -> None:
    base = factories.model(session, project, "base", base="Org/Hub-Name")
    broken = factories.model(session, project, base="models/broken")
    foreign = factories.model(session, factories.project(session))
    session.commit()
    folder = app.state.store.root / "models/broken"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("[1, 2")
    client = sign_in("admin")
    for model in (base, broken):
        page = client.get(f"/projects/{project.slug}/models/{model.id}")
        assert (page.status_code, "No report on this model" in page.text) == (200, True)
    for wrong in (foreign.id, 10**30, 0):
        assert client.get(f"/projects/{project.slug}/models/{wrong}").status_code == 404
    assert sign_in("labeler").get(f"/projects/{project.slug}/models/{base.id}").status_code == 403


@pytest.mark.parametrize(
    ("kept_epoch", "files", "learned"),
    [
        (2, "Adapters and heads models/run-7", "The weights are those after epoch 2."),
        (0, "Heads models/run-7", "Only heads were learned, on the layers of the base model."),
    ],
)
def test_a_reward_model_says_what_it_stands_on_and_how_its_accuracy_was_measured(
    app: FastAPI,
    session: Session,
    project: Project,
    sign_in: Callable[..., SignedIn],
    kept_epoch: int,
    files: str,
    learned: str,
) -> None:
    result = {"members": 4, "disagreement": 0.314, "kept_epoch": kept_epoch}
    reward = factories.model(
        session,
        project,
        role="reward",
        name="reward-1",
        base="models/run-7",
        card={"algorithm": "reward", "base": "models/smol", "result": result},
    )
    session.commit()
    folder = app.state.store.root / "models/run-7"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(REPORT))
    text = sign_in("operator").get(f"/projects/{project.slug}/models/{reward.id}").text
    shown = " ".join(BeautifulSoup(text, "html.parser").get_text(" ").split())
    assert f"Base models/smol {files}" in shown
    assert "Accuracy is cross-fitted over 4 members" in shown
    assert "disagree by 0.31 standard deviations" in shown
    assert learned in shown


def test_the_list_is_read_in_pages(
    sign_in: Callable[..., SignedIn], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PAGE", 2)
    project = factories.project(session)
    made = [factories.model(session, project, name=f"model-{n}").id for n in range(5)]
    session.commit()
    client, address, seen = sign_in("operator"), f"/projects/{project.slug}/models", list[int]()
    while address:
        soup = BeautifulSoup(client.get(address).text, "html.parser")
        links = (row.select_one("th[scope=row] a") for row in soup.select("tbody tr"))
        page = [int(str(link["href"]).rsplit("/", 1)[1]) for link in links if link]
        assert len(page) <= 2
        seen += page
        older = soup.select_one("a[rel=next]")
        address = str(older["href"]) if older else ""
    assert [id_ for id_ in seen if id_ in made] == made[::-1]
    assert len(seen) == len(set(seen))
