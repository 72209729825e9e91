"""The confidence sequence against arithmetic and an independent computation, and its error rates by simulation."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import ArrayLike
from ville import BettingTest

from app.domain import sequence
from app.domain.sequence import ALPHA, FEWEST, capital, hedged, preference, preferred

DECIDES = -math.log(ALPHA)


def by_hand(values: Sequence[float], mean: float, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the capital of bets on more and on less than `mean`, by the paper's formulas, value by value."""
    up = down = 1.0
    total, spread = 0.0, 0.0
    variance = 1 / 4
    for i, x in enumerate(values, 1):
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * i * math.log(i + 1)))
        up *= 1 + min(bet, 0.5 / mean) * (x - mean)
        down *= 1 - min(bet, 0.5 / (1 - mean)) * (x - mean)
        total += x
        spread += (x - (1 / 2 + total) / (i + 1)) ** 2
        variance = (1 / 4 + spread) / (i + 1)
    return up, down


def excluded(values: Sequence[float], mean: float) -> bool:
    return max(by_hand(values, mean)) / 2 >= 1 / ALPHA


def test_while_the_bet_is_at_its_cap_capital_is_a_power() -> None:
    """A bet of 1 against 1/2 wins or loses half of the capital; the first bets are all at the cap."""
    better, worse = capital([1, 1, 1, 0, 0.5])
    assert np.exp(better) == pytest.approx([1.5, 1.5**2, 1.5**3, 1.5**3 * 0.5, 1.5**3 * 0.5])
    assert np.exp(worse) == pytest.approx([0.5, 0.5**2, 0.5**3, 0.5**3 * 1.5, 0.5**3 * 1.5])
    found = preference([1, 1, 1])
    assert found is not None
    assert found.e_value == pytest.approx(1.5**3 / 2)
    assert found.e_better == pytest.approx(1.5**3 / 2)
    behind = preference([0, 0, 0])
    assert behind is not None
    assert (behind.e_value, behind.e_better) == pytest.approx((1.5**3 / 2, 0.5**3 / 2))


def test_ten_prompts_of_one_mind_decide_and_nine_do_not() -> None:
    """1.5^9 / 2 = 19.2 is below 1 / 0.05, and 1.5^10 / 2 = 28.8 is above it."""
    words = []
    for n, side in product((9, 10), (1.0, 0.0)):
        found = preference([side] * n)
        assert found is not None
        words.append(found.word)
        assert (found.value, found.prompts, found.more) == (side, n, 1 if n == 9 else None)
    assert words == ["not shown", "not shown", "better", "worse"]


def test_capital_is_that_of_the_papers_formulas() -> None:
    values = np.random.default_rng(3).choice([0, 0.25, 0.5, 1], 120, p=[0.2, 0.2, 0.2, 0.4]).tolist()
    better, worse = capital(values)
    for n in (1, 7, 40, 120):
        assert (math.exp(better[n - 1]), math.exp(worse[n - 1])) == pytest.approx(by_hand(values[:n], 0.5), rel=1e-9)


def test_the_interval_holds_what_is_not_refuted_by_hand() -> None:
    values = np.random.default_rng(4).choice([0, 0.5, 1], 60, p=[0.3, 0.2, 0.5]).tolist()
    for n in (3, 20, 60):
        found = preference(values[:n])
        assert found is not None
        means = np.linspace(0, 1, 1001)[1:-1]
        kept = [mean for mean in means if not excluded(values[:n], mean)]
        # The interval extends to the next mean that was tried, so that it is not too narrow.
        assert found.low == pytest.approx(max(kept[0] - 0.001, 0))
        assert found.high == pytest.approx(min(kept[-1] + 0.001, 1))
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize("mean", [0.25, 0.75, 0.5])
def test_word_interval_and_e_value_say_the_same_at_every_look(mean: float) -> None:
    values = np.random.default_rng(5).binomial(1, mean, 80).astype(float).tolist()
    for n in range(1, 81):
        found = preference(values[:n])
        assert found is not None
        decided = found.word != "not shown"
        assert decided == (found.e_value >= 1 / ALPHA) == (found.low >= 0.5 or found.high <= 0.5)
        if decided:
            assert (found.word == "better") == (found.low >= 0.5)


def test_mirrored_values_give_mirrored_words() -> None:
    values = np.random.default_rng(6).choice([0, 0.5, 1], 40).tolist()
    found, mirrored = preference(values), preference([1 - value for value in values])
    assert found is not None
    assert mirrored is not None
    assert (mirrored.low, mirrored.high, mirrored.e_value) == pytest.approx(
        (1 - found.high, 1 - found.low, found.e_value)
    )


def test_how_many_more_is_counted_from_the_same_answers_again() -> None:
    values = [1.0, 1.0, 0.0, 1.0, 0.5, 1.0]
    found = preference(values)
    assert found is not None
    again = values + [values[i % len(values)] for i in range(200)]
    first = next(n for n in range(len(values), 200) if excluded(again[:n], 0.5))
    assert found.more == first - len(values)


@pytest.mark.parametrize("values", [[1.0] * (FEWEST - 1), [0.5] * 30, [1.0, 0.0] * 20])
def test_how_many_more_is_not_said_where_it_is_not_known(values: list[float]) -> None:
    """With too few prompts; if nobody prefers anything; and if a thousand more prompts like these would not decide."""
    found = preference(values)
    assert found is not None
    assert (found.word, found.more) == ("not shown", None)


def test_nothing_judged_says_nothing_and_a_wrong_value_is_refused() -> None:
    assert preference([]) is None
    with pytest.raises(ValueError, match="must lie in"):
        preference([0.5, 1.5])


def test_very_much_evidence_is_a_number() -> None:
    found = preference([1.0] * 4000)
    assert found is not None
    assert math.isfinite(found.e_value)
    assert math.isfinite(found.e_better)


# ---- errors, by simulation -------------------------------------------------------------------------------------------

RUNS, LOOKS = 2000, 300


def upper_bound(probability: float, runs: int) -> float:
    """Return the share of runs that is exceeded with probability at most 0.0001 (normal, 3.72 standard deviations)."""
    return probability + 3.72 * math.sqrt(probability * (1 - probability) / runs)


# Possible prompts if people like both policies equally: (values, their probabilities), with mean 1/2.
EQUAL = {
    "one labeler": ([0, 1], [0.5, 0.5]),
    "two labelers": ([0, 0.5, 1], [0.25, 0.5, 0.25]),
    "many ties": ([0, 0.5, 1], [0.05, 0.9, 0.05]),
    "rare great losses": ([0, 0.6], [1 / 6, 5 / 6]),
    "rare great wins": ([0.4, 1], [5 / 6, 1 / 6]),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_looking_after_every_prompt_errs_no_more_often_than_alpha(kind: str) -> None:
    values, shares = EQUAL[kind]
    draws = np.random.default_rng(7).choice(values, (RUNS, LOOKS), p=shares)
    errors = sum(hedged(*capital(run)).max() >= DECIDES for run in draws)
    assert errors / RUNS <= upper_bound(ALPHA, RUNS)


def test_the_interval_never_leaves_the_true_win_rate_more_often_than_alpha() -> None:
    """The true win rate is 0.7. An interval at any look excludes it only if the capital against 0.7 says so."""
    draws = np.random.default_rng(8).binomial(1, 0.7, (RUNS, LOOKS)).astype(float)
    missed = 0
    for run in draws:
        paths = [BettingTest(0.7, alternative=side).fit(run).log_e_values_ for side in ("greater", "less")]
        missed += hedged(*paths).max() >= DECIDES
    assert missed / RUNS <= upper_bound(ALPHA, RUNS)


def test_a_fixed_sample_test_errs_far_more_often_under_the_same_looks() -> None:
    """This shows that the test above is hard: a z-test after each of 300 prompts fails it."""
    draws = np.random.default_rng(7).binomial(1, 0.5, (RUNS, LOOKS))
    n = np.arange(1, LOOKS + 1)
    z = np.abs(draws.cumsum(1) - n / 2) / np.sqrt(n / 4)
    assert (z[:, 9:] > 1.96).any(1).mean() > 0.25


@pytest.mark.parametrize(("win_rate", "least"), [(0.7, 0.9), (0.65, 0.75), (0.6, 0.3)])
def test_what_people_prefer_is_found(win_rate: float, least: float) -> None:
    """Within 200 prompts with one judgment each, in at least this share of runs; almost never the other way round."""
    draws = np.random.default_rng(9).binomial(1, win_rate, (500, 200)).astype(float)
    found, wrong = 0, 0
    for run in draws:
        better, worse = capital(run)
        decided = np.flatnonzero(hedged(better, worse) >= DECIDES)
        if decided.size:
            found += better[decided[0]] > worse[decided[0]]
            wrong += better[decided[0]] < worse[decided[0]]
    assert found / 500 >= least
    assert wrong / 500 <= upper_bound(ALPHA / 2, 500)


# ---- several policies ------------------------------------------------------------------------------------------------


def test_e_bh_by_its_definition() -> None:
    """It names the k policies with the largest e, for the largest k with k e_k / m >= 1 / alpha."""
    # m = 4: 1 * 90 / 4 = 22.5 and 2 * 41 / 4 = 20.5 reach 20; 3 * 20 / 4 = 15 does not.
    assert preferred([20, 90, 0.3, 41]) == [False, True, False, True]
    # The third policy is enough although the first alone is not: 1 * 30 / 4 < 20, 3 * 27 / 4 >= 20.
    assert preferred([30, 28, 27, 1]) == [True, True, True, False]
    assert preferred([20.0]) == [True]
    assert preferred([19.9]) == [False]
    assert preferred([]) == []


def test_of_several_policies_few_are_named_by_mistake() -> None:
    """Five equal the first and three are better, on the same prompts: the share of wrong names is at most alpha."""
    rng, shares, found = np.random.default_rng(10), [], 0
    for _ in range(400):
        hard = rng.uniform(-0.2, 0.2, 200)  # all policies share this, so their values are correlated
        rates = np.array([0.5] * 5 + [0.75] * 3)
        values = (rng.random((8, 200)) < np.clip(rates[:, None] + hard, 0, 1)).astype(float)
        named = preferred([math.exp(capital(each)[0][-1]) / 2 for each in values])
        shares.append(sum(named[:5]) / max(sum(named), 1))
        found += sum(named[5:])
    assert np.mean(shares) <= upper_bound(ALPHA, 400)
    assert found / (400 * 3) > 0.8


def test_values_that_did_not_change_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of all rounds asks for all of them every time, and ten visitors would wait for one another."""
    asked = []

    def counted(values: ArrayLike, alpha: float = ALPHA) -> tuple[sequence.Floats, sequence.Floats]:
        asked.append(values)
        return capital(values, alpha)

    monkeypatch.setattr(sequence, "capital", counted)
    values = [1.0, 0.75, 1.0, 0.5, 0.2751] * 10
    first = preference(values)
    times = len(asked)
    assert times > 0
    assert preference(list(values)) == first
    assert len(asked) == times
    values[3] = 0.0  # somebody has changed an answer
    changed = preference(values)
    assert changed is not None
    assert first is not None
    assert changed.value == pytest.approx(first.value - 0.5 / 50)
    assert len(asked) > times
