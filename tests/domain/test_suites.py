"""Scores of suites: the paired interval against scipy and statsmodels, and by counting all possible outcomes."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import multinomial, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from app.domain.suites import Score, by_slice, loses_too_much, paired_difference, reach, score, total


def test_counts_by_arithmetic() -> None:
    new, before = [True, True, False, False, True], [True, False, True, False, True]
    found = by_slice(["a", "a", "b", "", "b"], new, before)
    assert found[""] == Score(5, passed=3, before=3, gained=1, lost=1)
    assert found["a"] == Score(2, passed=2, before=1, gained=1, lost=0)
    assert found["b"] == Score(2, passed=1, before=2, gained=0, lost=1)
    assert found["b"].change == pytest.approx(-0.5)
    assert total([found["a"], found["b"]]) == Score(4, 3, 3, 1, 1)
    assert total([]) is None


@pytest.mark.parametrize(("cases", "gained", "lost"), [(30, 1, 7), (40, 0, 0), (100, 12, 3), (5, 5, 0), (200, 30, 60)])
def test_the_interval_is_that_of_the_differences_with_one_case_added_on_either_side(
    cases: int, gained: int, lost: int
) -> None:
    values = np.array([1] * (gained + 1) + [-1] * (lost + 1) + [0] * (cases - gained - lost))
    low, high = norm.interval(0.95, loc=values.mean(), scale=values.std(ddof=0) / np.sqrt(len(values)))
    found = paired_difference(cases, gained, lost)
    assert found is not None
    assert found.value == pytest.approx((gained - lost) / cases)
    assert (found.low, found.high) == pytest.approx((max(-1, low), min(1, high)), abs=1e-6)
    assert found.low <= found.value <= found.high


def test_an_example_by_hand() -> None:
    # Of 30 cases, one was won and seven were lost: (2 - 8) / 32, and 10/32 - (6/32)^2 = 0.27734 over 32.
    found = paired_difference(30, 1, 7)
    assert found is not None
    assert found.value == pytest.approx(-0.2)
    half = 1.959964 * (0.2773437 / 32) ** 0.5
    assert (found.low, found.high) == pytest.approx((-0.1875 - half, -0.1875 + half), abs=1e-6)


def test_few_cases_say_nothing() -> None:
    assert paired_difference(4, 0, 4) is None
    assert reach(4) == 1
    assert reach(30) == pytest.approx(1.959964 * (2 / 32 / 32) ** 0.5)


def test_the_policys_own_share_has_wilsons_interval() -> None:
    found = Score(40, 31, 30, 2, 1).interval
    assert (found.low, found.high) == pytest.approx(proportion_confint(31, 40, method="wilson"), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 3), (1, 7), (5, 5), (0, 6), (0, 8), (12, 40), (3, 14)])
def test_it_agrees_with_mcnemars_exact_test_where_that_is_clear(gained: int, lost: int) -> None:
    """The test tells whether chance alone explains the split, but has no interval for the size of the loss."""
    found = paired_difference(60, gained, lost)
    assert found is not None
    p = mcnemar([[4, lost], [gained, 4]], exact=True).pvalue
    assert (found.high < 0) == (p < 0.05) or 0.01 < p < 0.1


@pytest.mark.parametrize("n", [10, 20, 40])
def test_it_covers_what_it_promises(n: int) -> None:
    """All outcomes of n cases with their probabilities: for how many true differences does the interval miss?"""
    outcomes = np.array([(b, c, n - b - c) for b, c in product(range(n + 1), repeat=2) if b + c <= n])
    bounds = np.array([paired_difference(n, int(b), int(c))[1:] for b, c, _ in outcomes])  # type: ignore[index]
    covered = []
    for up, down in [(0, 0), (0, 0.05), (0.02, 0.1), (0.05, 0.05), (0.1, 0.3), (0.05, 0.5), (0.25, 0.25)]:
        chances = multinomial.pmf(outcomes, n, [up, down, 1 - up - down])
        holds = (bounds[:, 0] <= up - down + 1e-12) & (up - down - 1e-12 <= bounds[:, 1])
        covered.append(float(chances[holds].sum()))
    assert min(covered) > 0.93
    assert np.mean(covered) > 0.95


def test_nothing_is_certain_because_nothing_changed() -> None:
    """The bootstrap over these cases would give 0 to 0."""
    found = paired_difference(40, 0, 0)
    assert found is not None
    assert found.low < 0 < found.high


def test_a_gate_by_either_bound() -> None:
    worse = paired_difference(100, 2, 22)  # -0.2, -0.28 to -0.11
    assert loses_too_much(worse, 0.05, "high")
    assert not loses_too_much(worse, 0.15, "high")
    assert loses_too_much(worse, 0.15, "low")
    assert not loses_too_much(worse, 0.3, "low")
    assert not loses_too_much(None, 0.0, "low")
    same = paired_difference(30, 0, 0)
    assert not loses_too_much(same, 0, "high")
    assert loses_too_much(same, 0.08, "low")  # thirty cases cannot show so little
    assert not loses_too_much(same, reach(30), "low")


def test_a_score_adds_up() -> None:
    found = score([True] * 3, [True, False, True])
    assert found.passed - found.before == found.gained - found.lost
