"""Monitors within a run: signs against scipy's t-tests, patience, and the state in a checkpoint."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import special, stats

from app.domain.monitors import FALSE_ALARMS, IN_RUNS, LEAST_PROMPTS, Interval, findings, parting, shift
from app.domain.shift import chi_squared_tail, kolmogorov_tail, of_numbers, of_tags
from app.domain.watching import Watch, signs

LEVEL = FALSE_ALARMS / len(IN_RUNS)


def figures(values: np.ndarray, first: int = 0, name: str = "hedging") -> dict[str, dict[str, float]]:
    return {name: {str(first + i): float(value) for i, value in enumerate(values)}}


@pytest.mark.parametrize("seed", range(6))
def test_other_prompts_are_two_samples_and_the_same_ones_are_pairs(seed: int) -> None:
    """A sign needs a one-sided p below the level, by Welch's or the paired test, and a relevant change."""
    rng = np.random.default_rng(seed)
    before, now = rng.normal(0.2, 0.2, 12), rng.normal(0.2 + 0.08 * seed, 0.3, 9)
    p = stats.ttest_ind(now, before, equal_var=False, alternative="greater").pvalue
    expected = bool(p < LEVEL and now.mean() - before.mean() >= 0.1)
    assert bool(signs(figures(before), figures(now, 100))) == expected

    later = before + rng.normal(0.08 * seed, 0.15, 12)
    p = stats.ttest_rel(later, before, alternative="greater").pvalue
    expected = bool(p < LEVEL and (later - before).mean() >= 0.1)
    found = signs(figures(before), figures(later))
    assert bool(found) == expected
    if found:
        interval = stats.ttest_rel(later, before).confidence_interval(0.95)
        assert found[0].change[1:] == pytest.approx((interval.low, interval.high), rel=1e-3)


def test_an_alarm_needs_signs_in_a_row_and_is_given_once() -> None:
    calm, wild = figures(np.full(8, 0.1)), figures(np.full(8, 0.9), 50)
    watch = Watch(patience=2)
    assert watch.look(calm) == []  # the baseline
    assert watch.look(wild) == []
    assert not watch.is_quiet
    assert watch.look(calm) == []
    assert watch.is_quiet  # the row was broken
    assert watch.look(wild) == []
    watch = Watch(**json.loads(json.dumps(asdict(watch))))  # as in a checkpoint
    assert [sign.monitor.name for sign in watch.look(wild)] == ["hedging"]
    assert watch.look(wild) == []
    assert not watch.is_quiet
    few = {"hedging": {str(i): 1.0 for i in range(4)}}
    assert signs(calm, few) == []  # four prompts are too few


def test_the_tests_of_prompts_are_the_classical_ones() -> None:
    for x, degrees in ((0.5, 1), (7.3, 3), (12.0, 6), (30.0, 11)):
        assert chi_squared_tail(x, degrees) == pytest.approx(stats.chi2.sf(x, degrees), rel=1e-9)
    for x in (0.3, 0.8, 1.36, 2.0):
        assert kolmogorov_tail(x) == pytest.approx(special.kolmogorov(x), rel=1e-9)
    tags = [["a"] * 30 + ["b"] * 20, ["a"] * 10 + ["b"] * 25]
    expected = stats.chi2_contingency([[30, 20], [10, 25]], correction=False)
    assert of_tags(*tags).p == pytest.approx(expected.pvalue)
    assert of_tags(*tags).size == pytest.approx(30 / 50 - 10 / 35)
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1, 40), rng.normal(0.7, 1, 30)
    assert of_numbers([*first], [*second]).size == pytest.approx(stats.ks_2samp(first, second).statistic)


def test_prompts_of_another_kind_are_to_be_looked_at() -> None:
    judged = [("factual", 8)] * 20 + [("safety", 9)] * 20
    found = shift(judged, judged[10:30])
    assert found is not None
    assert found.state == "fine"
    found = shift(judged, [("code", 40)] * 20)
    assert found is not None
    assert (found.state, found.new) == ("look", 1.0)
    assert shift(judged, judged[: LEAST_PROMPTS - 1]) is None


def test_reward_model_and_people_part_where_their_win_rates_do() -> None:
    def metrics(wins: float) -> dict[str, float]:
        return {"eval_wins": wins, "eval_wins_low": wins - 0.1, "eval_wins_high": wins + 0.1, "eval_prompts": 20.0}

    people = {"": (Interval(0.55, 0.45, 0.65), 20), "domain=safety": (Interval(0.3, 0.2, 0.4), 20)}
    found = parting({"": metrics(0.6), "domain=safety": metrics(0.8)}, people)
    assert found is not None
    assert (found.state, found.before, found.new, found.why) == ("look", 0.3, 0.8, "In domain: safety.")
    # 0.25 apart, with errors from 0.1 and 0.1 at 95%: 3.5 standard errors, significant for one look, not for one of 44.
    people = {"": (Interval(0.55, 0.35, 0.75), 20)}
    found = parting({"": metrics(0.75)}, people)
    assert found is not None
    assert found.state == "fine"
    assert parting({"": metrics(0.9)}, {"": (Interval(0.5, 0.4, 0.6), 9)}) is None
    assert findings({}) == []
