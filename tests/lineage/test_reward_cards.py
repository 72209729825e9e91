"""The five cards of a reward model: when each says *look*, and its figures against arithmetic and other libraries."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from fastapi import FastAPI
from scipy.stats import binom
from sqlalchemy.orm import Session
from statsmodels.stats.proportion import proportion_confint

from app.domain.intervals import Interval
from app.lineage import queries, views
from app.lineage.reward_cards import Card, Ceiling, calibrated_ece, cards
from tests import factories
from tests.conftest import SignedIn
from tests.lineage.reports import report

SignIn = Callable[..., SignedIn]
NAMES = ["accuracy", "calibration", "length", "stability", "attacks"]


def by_name(given: dict[str, Any], ceiling: Ceiling | None = None) -> dict[str, Card]:
    return {card.name: card for card in cards(given, ceiling)}


def agreement(value: float) -> Ceiling:
    return Ceiling(Interval(value, value - 0.05, value + 0.05), 120)


def test_a_good_model_has_nothing_to_look_at() -> None:
    found = by_name(report(), agreement(0.83))
    assert {name: card.state for name, card in found.items()} == dict.fromkeys(NAMES, "fine")
    assert [line[:3] for line in found["accuracy"].lines] == [
        ("Reward model", "80%", "76 to 84%, 450 comparisons"),
        ("Two labelers", "83%", "78 to 88%, 120 comparisons"),
        ("On training comparisons", "90%", "400 comparisons"),
        ("On held-out comparisons", "78%", "50 comparisons"),
    ]


@pytest.mark.parametrize(
    ("bounds", "ceiling", "state", "why"),
    [
        ([0.76, 0.84], 0.85, "look", "less often than they agree with each other"),
        ([0.76, 0.84], 0.84, "fine", "no evidence that it agrees"),
        ([0.5, 0.84], 0.7, "look", "not shown to be better than chance"),
        ([0.51, 0.84], None, "fine", "No comparison was judged twice"),
    ],
)
def test_accuracy_is_read_beside_the_labelers_own(bounds: list[float], ceiling: float, state: str, why: str) -> None:
    given = report(intervals=report()["intervals"] | {"accuracy": bounds})
    card = by_name(given, agreement(ceiling) if ceiling else None)["accuracy"]
    assert card.state == state
    assert why in card.why


def test_calibration_is_looked_at_if_chance_does_not_explain_the_gap() -> None:
    """In a bin of n pairs with confidence c, chance alone makes a gap of |X / n - c|, with X binomial."""
    n, c = 400, 0.8
    gaps = np.abs(np.arange(n + 1) / n - c)
    exact = min(gap for gap in gaps if binom.pmf(np.flatnonzero(gaps <= gap + 1e-12), n, c).sum() >= 0.95)
    assert calibrated_ece([(c, n)]) == pytest.approx(exact, abs=0.003)
    bins = [{"confidence": 0.9, "accuracy": 0.7, "pairs": 100}]
    card = by_name(report(calibration={"ece": 0.2, "reliability": bins}))["calibration"]
    assert card.state == "look"
    assert card.why == "It is surer than it should be: its confidence is 90%, and 70% are right."
    few = [{"confidence": 0.9, "accuracy": 0.7, "pairs": 10}]  # 7 of 10: P(X <= 7) is 7% of 0.9
    assert by_name(report(calibration={"ece": 0.2, "reliability": few}))["calibration"].state == "fine"


def test_the_plot_has_a_point_for_each_bin_with_wilsons_interval() -> None:
    chart = by_name(report())["calibration"].chart
    assert chart is not None
    (series,) = chart.panels[0].series
    assert list(series.points) == [(0.6, 0.62), (0.75, 0.74), (0.95, 0.92)]
    assert series.reach[0] == pytest.approx(proportion_confint(93, 150, method="wilson"), abs=1e-6)


@pytest.mark.parametrize(
    ("bias", "bounds", "matched", "state", "why"),
    [
        (0.12, [0.04, 0.2], [0.7, 0.88], "look", "prefers longer responses"),
        (-0.12, [-0.2, -0.04], [0.7, 0.88], "look", "prefers shorter responses"),
        (0.12, [-0.01, 0.25], [0.7, 0.88], "fine", "do not show that it prefers"),
        (0.04, [0.02, 0.06], [0.7, 0.88], "fine", "do not show that it prefers"),  # sure, and too small to matter
        (0.01, [-0.03, 0.05], [0.5, 0.79], "look", "when length cannot help it"),
    ],
)
def test_length_bias_also_at_equal_length(
    bias: float, bounds: list[float], matched: list[float], state: str, why: str
) -> None:
    given = report(
        length=report()["length"] | {"bias": bias},
        intervals=report()["intervals"] | {"length_bias": bounds, "matched_accuracy": matched},
    )
    card = by_name(given)["length"]
    assert card.state == state
    assert why in card.why


def test_edits_and_attacks_are_looked_at_where_the_interval_lies_beyond_the_limit() -> None:
    """6 of 100 may be below 5%, 24 of 200 is not; 2 of 20 may be below 10%, 40 of 200 is not."""
    low = proportion_confint(24, 200, method="wilson")[0]
    assert low > 0.05
    probes = report()["probes"]
    worse = probes | {
        "invariance": probes["invariance"] | {"whitespace": {"pairs": 200, "flipped": 0.12, "mean_change": 0.2}},
        "adversarial": probes["adversarial"] | {"padding": {"prompts": 200, "wins": 0.2, "mean_change": 0.2}},
    }
    found = by_name(report(probes=worse))
    assert found["stability"].why == "Edits that reverse more than 5% of comparisons: two spaces between sentences."
    assert [(line.label, line.value, line.looks) for line in found["stability"].lines] == [
        ("two spaces between sentences", "12%", True),
        ("the first line in bold", "6%", False),
    ]
    assert found["attacks"].why == "Attacks that win on more than 10% of prompts: sentences without content added."
    assert [line.looks for line in found["attacks"].lines] == [True, False]


@pytest.mark.parametrize("given", [{"model": {}}, report(intervals={}, calibration=None, length={}, probes={})])
def test_what_was_not_measured_says_so(given: dict[str, Any]) -> None:
    assert {name: card.state for name, card in by_name(given).items()} == dict.fromkeys(NAMES, "unknown")


@pytest.mark.parametrize("odd", [{"unseen": 3}, {"probes": []}, {"calibration": {"ece": float("nan")}}])
def test_another_programs_report_has_no_cards(odd: dict[str, Any]) -> None:
    assert cards(report(**odd), None) == []


def test_the_ceiling_counts_every_comparison_that_two_judged(session: Session) -> None:
    """Settled or not. Two agree (1), two do not (0), one of two says tie (1/2), and two of three agree (1/3)."""
    project = factories.project(session)
    people = [factories.user(session) for _ in range(3)]
    shared = factories.prompt(session, project)
    for state, preferences in (
        ("settled", (-1, -2)),
        ("in_review", (-1, 1)),
        ("open", (2, 0)),
        ("adjudicated", (1, 1, -3)),
        ("settled", (1,)),  # by one alone
        ("withdrawn", (1, 1)),
    ):
        given = {"prompt": shared} if state in ("settled", "in_review") and len(preferences) == 2 else {}
        comparison = factories.comparison(session, project, overlap=3, **given)
        for labeler, preference in zip(people, preferences, strict=False):
            factories.judgment(session, comparison, preference=preference, labeler_id=labeler.id)
        comparison.state = state
        comparison.review_reason = "split" if state == "in_review" else None
    counted = factories.comparison(session, project, overlap=2)
    factories.judgment(session, counted, preference=1, labeler_id=people[0].id)
    factories.judgment(session, counted, preference=1, labeler_id=factories.user(session, kind="ai_judge").id)
    session.flush()
    found = views.ceiling(session, project.id, datetime.now(UTC))
    assert found is not None
    assert found.comparisons == 4
    assert found.agreement.value == pytest.approx((1 + 0 + 1 / 2 + 1 / 3) / 4)
    assert sorted(queries.agreement_by_prompt(session, project.id, datetime.now(UTC))) == [
        (pytest.approx(1 / 3), 1),
        (pytest.approx(1 / 2), 1),
        (pytest.approx(1.0), 2),
    ]
    assert views.ceiling(session, project.id, datetime(2020, 1, 1, tzinfo=UTC)) is None  # nobody had judged then


def test_the_page_shows_five_cards_and_folds_the_rest(app: FastAPI, session: Session, sign_in: SignIn) -> None:
    project = factories.project(session)
    model = factories.model(session, project, role="reward", name="reward-1", base="models/run-7")
    session.commit()
    folder = app.state.store.root / "models/run-7"
    folder.mkdir(parents=True)
    probes = report()["probes"] | {"adversarial": {"refusal": {"prompts": 100, "wins": 0.5, "mean_change": 1.0}}}
    (folder / "report.json").write_text(json.dumps(report(probes=probes)))
    client = sign_in("operator")
    url = f"/projects/{project.slug}/models/{model.id}"
    page = BeautifulSoup(client.get(url).text, "html.parser")
    said = [" ".join(each.get_text().split()) for each in page.select(".cards h3")]
    assert said == ["Accuracy fine", "Calibration fine", "Length bias fine", "Harmless edits fine", "Attacks look"]
    warning = page.select_one(".message-warn")
    assert warning is not None
    assert " ".join(warning.get_text().split()) == "1 card to look at: Attacks."
    (fold,) = page.select("details.fold")
    assert not fold.has_attr("open")
    rows = list(csv.DictReader(io.StringIO(client.get(f"{url}/files/cards.csv").text)))
    assert {"card": "Attacks", "state": "look", "value": "50%"}.items() <= rows[-1].items()
    assert client.get(f"{url}/files/calibration.svg").text.count("<circle") == 3
    assert "0.62" in client.get(f"{url}/files/calibration.csv").text
    policy = factories.model(session, project)
    session.commit()
    assert client.get(f"/projects/{project.slug}/models/{policy.id}/files/cards.csv").status_code == 404
