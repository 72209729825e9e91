"""Which judgments are on the board, and what its page and CSV contain."""

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup, Tag
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.cache import Cache
from app.insights.service import PEOPLE
from app.leaderboard import queries, routes, service
from app.models import ModelVersion, Project, User
from tests import factories
from tests.conftest import SignedIn
from tests.leaderboard.scenes import contest, judged, pair

SignIn = Callable[..., SignedIn]


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


@pytest.fixture
def policies(session: Session, project: Project) -> list[ModelVersion]:
    roles = ("base", "policy", "policy", "policy")
    return [
        factories.model(session, project, role, name=name)
        for role, name in zip(roles, ("base", "one", "two", "three"), strict=True)
    ]


@pytest.fixture
def labelers(session: Session) -> list[User]:
    return [factories.user(session) for _ in range(6)]


def text_of(html: Tag) -> str:
    return " ".join(html.get_text().split())


def test_which_judgments_count(
    session: Session, project: Project, policies: list[ModelVersion], labelers: list[User]
) -> None:
    base, one, two, _ = policies
    ann, bob, *_ = labelers
    counted = [pair(session, project, (base, one)), pair(session, project, (one, two), purpose="heldout")]
    counted[1].selection = {"policy": "random", "wanted": "uncertain", "because": "none"}
    for row in counted:
        judged(session, row, ann, 2)
    # None of these: actively chosen, not known how, on a training prompt, withdrawn, a calibration item, a repeat, one
    # policy's own two responses, an imported pair, a superseded judgment, "cannot judge", a reward model's response.
    rows = [
        *(
            pair(session, project, (base, one), purpose="heldout", selection={"policy": policy})
            for policy in ("near_miss", "uncertain", "drts", "delta_ucb")
        ),
        pair(session, project, (base, one), selection={}),
        pair(session, project, (base, one), purpose="train"),
        pair(session, project, (base, one), state="withdrawn"),
        pair(session, project, (base, one), purpose="calibration", gold=1),
        pair(session, project, (base, one), purpose="repeat", repeat_of_id=counted[0].id),
        pair(session, project, (one, one)),
        pair(session, project, (one, None)),
        pair(session, project, (one, factories.model(session, project, "reward"))),
    ]
    for row in rows:
        judged(session, row, ann, 2)
    factories.judgment(
        *(session, counted[0]), preference=-2, labeler_id=bob.id,
        superseded_at=datetime.now(UTC), superseded_for="undone",
    )  # fmt: skip
    judged(session, counted[1], bob, None)
    other = factories.project(session)
    judged(session, pair(session, other, (factories.model(session, other), factories.model(session, other))), ann, 2)
    robot = factories.user(session, kind="simulated")
    judged(session, counted[0], robot, -1)

    found = queries.rows(session, project.id, PEOPLE, 100)
    assert [(row.a, row.b, row.preference, row.labeler) for row in found] == [
        (one.id, two.id, 2, ann.id),
        (base.id, one.id, 2, ann.id),
    ]
    assert [row.labeler for row in queries.rows(session, project.id, ("simulated",), 100)] == [robot.id]
    assert len(queries.rows(session, project.id, PEOPLE, 1)) == 1
    summary = service.summary(session, project.id, PEOPLE)
    assert summary.counted == {"person": 2, "simulated": 1}
    assert summary.left_out == {"chosen": 4, "unknown": 1, "withdrawn": 1}
    assert summary.policies == {policy.id: policy.name for policy in policies}


def test_what_is_read_of_a_judgment(
    session: Session, project: Project, policies: list[ModelVersion], labelers: list[User]
) -> None:
    base, one, *_ = policies
    texts = ("# A\n# B\n# C\n- one\n**x**", "# A\n\nplain, and one")
    row = pair(session, project, (base, one), texts=texts, tokens=(30, 10))
    judged(session, row, labelers[0], 3, swapped=True)
    judged(session, row, labelers[1], -1, swapped=False)
    judged(session, row, labelers[2], 0, swapped=None)
    untold = pair(session, project, (base, one), texts=("a" * 30, "a" * 90), tokens=(30, None))
    judged(session, untold, labelers[0], 1, swapped=False)
    found = service.matches(session, project.id, PEOPLE)
    newest_first = [labelers[0].id, labelers[2].id, labelers[1].id, labelers[0].id]
    assert found.labeler.tolist() == newest_first
    assert (set(found.a.tolist()), set(found.b.tolist())) == ({base.id}, {one.id})
    assert found.outcome.tolist() == [-1, 0, 1, -1]  # a preference above 0 is for B
    assert found.position.tolist() == [1.0, 0.0, 1.0, -1.0]
    assert found.prompt.tolist() == [untold.prompt_id, *[row.prompt_id] * 3]
    # (30 - 10) / 40 tokens, 3 against 1 header, 1 against 0 list items and bold passages; characters where tokens lack
    assert found.style == pytest.approx(np.array([[-0.5, 0, 0, 0], *[[0.5, 0.5, 1, 1]] * 3]))


def test_the_page_names_the_best_policy_and_the_others(
    sign_in: SignIn, session: Session, project: Project, policies: list[ModelVersion], labelers: list[User]
) -> None:
    base, one, two, three = policies
    contest(session, project, one, base, labelers, won=30, lost=10)
    contest(session, project, two, one, labelers, won=6, lost=0)
    client = sign_in("operator")
    page = client.get(f"/projects/{project.slug}/leaderboard")
    html = BeautifulSoup(page.text, "html.parser")
    words = text_of(html)
    # 30 of 40: three in four.
    assert "one is the best ranked policy It wins 75% (" in words
    assert "two may be better: it won every comparison that links it to the ranked policies." in words
    rows = [[text_of(cell) for cell in row.find_all(["td", "th"])] for row in html.select("tbody tr")]
    assert [row[:2] for row in rows] == [["1", "one"], ["2", "base compared with"]]
    assert "two won all of its 6 comparisons with the ranked policies: a win rate of 100% (61–100%)." in words
    assert "three: not compared with any policy yet. Compare three with one on held-out prompts to begin." in words
    assert "40 judgments on 40 prompts by 6 labelers" in words

    compared = client.get(f"/projects/{project.slug}/leaderboard", params={"reference": one.id})
    assert "one is the best ranked policy" in text_of(BeautifulSoup(compared.text, "html.parser"))
    for nonsense in (999_999, three.id):
        answer = client.get(f"/projects/{project.slug}/leaderboard", params={"reference": nonsense})
        assert answer.status_code == 200

    lines = list(csv.DictReader(io.StringIO(client.get(f"/projects/{project.slug}/leaderboard/figures.csv").text)))
    assert [(line["policy"], line["state"], line["rank"]) for line in lines] == [
        ("one", "ranked", "1"),
        ("base", "ranked", "2"),
        ("two", "won everything", ""),
        ("three", "not connected", ""),
    ]
    assert float(lines[0]["win_rate"]) == pytest.approx(0.75)
    assert float(lines[0]["strength"]) == pytest.approx(np.log(3), abs=1e-5)
    assert {line["reference_id"] for line in lines} == {str(base.id)}


def test_length_that_explains_the_lead_is_warned_of(
    sign_in: SignIn, session: Session, project: Project, policies: list[ModelVersion], labelers: list[User]
) -> None:
    """The response that is three times as long wins 3 of 4, and ONE's is longer in 80 of 100."""
    base, one, *_ = policies
    for tokens, won, lost in (((30, 10), 60, 20), ((10, 30), 5, 15)):
        contest(session, project, one, base, labelers, won=won, lost=lost, tokens=tokens)
    session.commit()
    html = BeautifulSoup(sign_in("admin").get(f"/projects/{project.slug}/leaderboard").text, "html.parser")
    words = text_of(html)
    assert "Raw and length-controlled win rates differ by more than 10 points." in words
    assert re.search(r"one wins 65% \(\d+–\d+%\) against base, and 50% \(\d+–\d+%\) when both", words)
    assert "−15 points" in words
    assert "A response 3.0 times as long as the other wins 75% (" in words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((0, 0, 0), "No policy has been compared with another"),
        ((10, 5, 0), "Too few judgments to rank policies 15 judgments on 15 prompts can be used so far."),
        ((25, 0, 0), "All comparisons of two policies went one way, so no win rate can be computed yet."),
        ((20, 0, 5), "5 of 25 judgments between these policies are ties, and all the others went one way."),
        ((20, 18, 2), "No policy is clearly the best one leads. It wins"),
    ],
)
def test_what_cannot_be_told_is_said(
    sign_in: SignIn,
    session: Session,
    project: Project,
    policies: list[ModelVersion],
    labelers: list[User],
    said: tuple[int, int, int],
    words: str,
) -> None:
    contest(session, project, policies[1], policies[0], labelers, *said)
    session.commit()
    html = sign_in("operator").get(f"/projects/{project.slug}/leaderboard").text
    assert words in text_of(BeautifulSoup(html, "html.parser"))


def test_a_project_without_policies(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    client = sign_in("admin")
    shown = client.get(f"/projects/{project.slug}/leaderboard").text
    assert "No policy yet" in shown
    assert "Only responses that are sampled here count, not imported ones." in shown
    assert "imported" not in routes.WORDS  # it would always be empty
    assert client.get(f"/projects/{project.slug}/leaderboard/figures.csv").text.count("\n") == 1


def test_machines_count_only_if_chosen_and_are_marked(
    sign_in: SignIn, session: Session, project: Project, policies: list[ModelVersion], labelers: list[User]
) -> None:
    base, one, *_ = policies
    robots = [factories.user(session, kind=kind) for kind in ("simulated", "ai_judge")]
    contest(session, project, one, base, robots, won=20, lost=10)
    session.commit()
    client = sign_in("admin")
    address = f"/projects/{project.slug}/leaderboard"

    def words(**query: Any) -> str:
        return text_of(BeautifulSoup(client.get(address, params=query).text, "html.parser"))

    alone = words()
    assert "Only simulated labelers and AI judges have judged them so far." in alone
    assert "is the best policy" not in alone
    assert "No person made these judgments." in words(kind=["simulated", "ai_judge"])
    assert "30 judgments on 30 prompts by 2 labelers" in words(kind=["simulated", "ai_judge"])
    assert "No person made these judgments." in words(kind=["person", "simulated"])
    contest(session, project, one, base, labelers, won=1, lost=1)
    session.commit()
    assert "These figures mix people’s judgments with those of machines." in words(kind=["person", "ai_judge"])


def test_a_large_project_loads_the_board_behind_the_page(
    sign_in: SignIn,
    session: Session,
    project: Project,
    policies: list[ModelVersion],
    labelers: list[User],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contest(session, project, policies[1], policies[0], labelers, won=30, lost=10)
    session.commit()
    assert queries.size(session, project.id) == 40
    monkeypatch.setattr(routes, "AT_ONCE", 39)
    client = sign_in("operator")
    address = f"/projects/{project.slug}/leaderboard"
    waiting = BeautifulSoup(client.get(address, params={"kind": ["person", "ai_judge"]}).text, "html.parser")
    (behind,) = waiting.select("#board[hx-get]")
    assert behind["hx-get"] == f"{address}/board?kind=person&kind=ai_judge"
    assert "one</bdi></a> is the best policy" in client.get(str(behind["hx-get"])).text
    assert "is the best policy" in client.get(address, params={"wait": "true"}).text


def test_numbers_that_are_no_policies_have_one_board_together(
    sign_in: SignIn,
    app: FastAPI,
    session: Session,
    project: Project,
    policies: list[ModelVersion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise each of them takes seconds."""
    monkeypatch.setattr(Cache, "KEPT_FOR", 10**9)
    app.state.leaderboards = boards = Cache[Any](worth_keeping=-1)
    foreign = factories.model(session, factories.project(session)).id
    client = sign_in("operator")
    for number in (10**6, foreign, policies[0].id):
        for part in ("", "/board", "/figures.csv"):
            assert client.get(f"/projects/{project.slug}/leaderboard{part}?reference={number}").status_code == 200
    kept = [
        boards.cached((project.id, routes.DEFAULT, reference)) for reference in (None, 10**6, foreign, policies[0].id)
    ]
    assert [each is not None for each in kept] == [True, False, False, True]


def test_names_are_no_formulas_in_a_spreadsheet(
    sign_in: SignIn, session: Session, project: Project, policies: list[ModelVersion]
) -> None:
    policies[0].name = "=1+1"
    session.commit()
    text = sign_in("admin").get(f"/projects/{project.slug}/leaderboard/figures.csv").text
    assert ",'=1+1," in text
