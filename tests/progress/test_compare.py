"""Comparison of two rounds: settings, data, figures, and both policies' answers to the same prompts."""

import csv
import io
from collections.abc import Callable

import pytest
from bs4 import BeautifulSoup
from sqlalchemy.orm import Session

from app.models import Project, Round
from app.progress import comparing
from tests import factories
from tests.conftest import SignedIn
from tests.progress.scenes import add_round, answer, best_of, evaluation, judge, snapshot

SignIn = Callable[..., SignedIn]


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def two(session: Session, project: Project) -> tuple[Round, Round]:
    first = add_round(session, project, 1, evaluation(0.4), config={"beta": 0.1, "epochs": 2, "lora": {"rank": 8}})
    metrics = evaluation(-0.25, longer=12.0) | best_of((1, 0.0), (2, 0.5), gain=0.7)
    config = {"beta": 0.3, "epochs": 2, "lora": {"rank": 16}, "turns": 4}
    return first, add_round(session, project, 2, metrics, config=config, algorithm="on_policy_dpo", accuracy=0.65)


def compared(client: SignedIn, project: Project, query: str = "") -> BeautifulSoup:
    found = client.get(f"/projects/{project.slug}/progress/compare{query}")
    assert found.status_code == 200
    return BeautifulSoup(found.text, "html.parser")


def lines(page: BeautifulSoup, section: str) -> dict[str, list[str]]:
    """Return both rounds' values by name, without the folded ones."""
    rows = page.select(f"[aria-labelledby={section}] > .scroll tbody tr")
    cells = [[" ".join(cell.get_text().split()) for cell in row.select("th, td")] for row in rows]
    return {name: values for name, *values in cells}


def test_figures_settings_and_data_stand_beside_each_other(sign_in: SignIn, session: Session, project: Project) -> None:
    first, second = two(session, project)
    judge(session, project, first, [1] * 3 + [-1])
    comparisons = [factories.comparison(session, project).id for _ in range(5)]
    snapshot(session, first, comparisons[:3], new=3, judgments=7)
    snapshot(session, second, comparisons[1:], new=2, judgments=1200)
    session.commit()
    client = sign_in("operator")
    page = compared(client, project)  # the newest two
    figures = lines(page, "figures")
    assert figures["Verdict"] == ["better, by the reward model", "worse, by the reward model"]
    assert figures["Win rate over the previous policy"][0].startswith("75% (")
    assert figures["Win rate over the previous policy"][0].endswith(") of 4 prompts")
    assert figures["Reward less the previous policy's, own reward model"] == [
        "+0.40 (0.20 to 0.60)",
        "-0.25 (-0.45 to -0.05)",
    ]
    assert figures["Reward less the reference's, own reward model"] == ["–", "+0.70 (0.60 to 0.80)"]
    assert figures["Reward model's accuracy"] == ["70%", "65%"]
    assert figures["Tokens a response"] == ["40.0", "52.0"]
    assert lines(page, "settings") == {
        "algorithm": ["dpo", "on_policy_dpo"],
        "beta": ["0.1", "0.3"],
        "lora": ["rank 8", "rank 16"],
        "turns": ["–", "4"],
    }
    assert "1 setting that both share" in page.get_text()
    data = lines(page, "data")
    assert (data["To train on"], data["of which new"], data["Judgments"]) == (["3", "4"], ["3", "2"], ["7", "1,200"])
    assert data["Comparisons that both read"] == ["2", "2"]
    assert data["Began with"] == ["base", "base"]
    rows = list(csv.reader(io.StringIO(client.get(f"/projects/{project.slug}/progress/compare.csv").text)))
    assert rows[0] == ["part", "name", "round 1", "round 2"]
    assert ["settings", "epochs", "2", "2"] in rows
    assert ["figures", "Tokens a response", "40.0", "52.0"] in rows
    swapped = compared(client, project, "?first=2&second=1")
    assert lines(swapped, "figures")["Reward model's accuracy"] == ["65%", "70%"]


def test_prompts_that_both_answered_are_shown_held_out_ones_first(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    first, second = two(session, project)
    train = factories.prompt(session, project, "A train prompt?", split="train")
    heldout = factories.prompt(session, project, "A held-out prompt?", split="heldout", domain="facts")
    alone = factories.prompt(session, project, "Answered by one?", split="heldout")
    for prompt in (train, heldout):
        for round_ in (first, second):
            answer(session, project, round_, prompt.id, f"{prompt.split} answer of round {round_.number}")
            answer(session, project, round_, prompt.id, "a later one")
    answer(session, project, first, alone.id, "nothing to compare with")
    session.commit()
    page = compared(sign_in("admin"), project)
    articles = [" ".join(each.get_text(" ").split()) for each in page.select("article")]
    assert articles == [
        "heldout, facts A held-out prompt? Round 1 heldout answer of round 1 Round 2 heldout answer of round 2",
        "train A train prompt? Round 1 train answer of round 1 Round 2 train answer of round 2",
    ]


def test_answers_come_page_by_page(sign_in: SignIn, session: Session, project: Project) -> None:
    first, second = two(session, project)
    for number in range(comparing.ANSWERS + 3):
        prompt = factories.prompt(session, project, f"Question number {number}?")
        for round_ in (first, second):
            answer(session, project, round_, prompt.id, "Yes.")
    session.commit()
    client = sign_in("operator")
    page = compared(client, project)
    assert len(page.select("article")) == comparing.ANSWERS
    (following,) = page.select(".pager a")
    page = BeautifulSoup(client.get(str(following["href"])).text, "html.parser")
    assert [each.text for each in page.select(".pager a")] == ["Previous prompts"]
    assert len(page.select("article")) == 3


def test_one_round_or_a_number_that_is_not_there(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    client = sign_in("operator")
    assert "Fewer than two rounds" in compared(client, project).get_text()
    assert client.get(f"/projects/{project.slug}/progress/compare.csv").status_code == 404
    unfinished = factories.round_(session, project, number=1, state="reward")
    factories.round_(session, project, number=2, state="failed", policy_before_id=unfinished.policy_before_id)
    session.commit()
    assert "No prompt was answered by both policies." in compared(client, project).get_text()
    for query in ("?first=7", "?first=1&second=9"):
        assert client.get(f"/projects/{project.slug}/progress/compare{query}").status_code == 404
