"""Best-of-n of the reference: its KL as an integral, its reward by trying all choices, and missing data."""

import math
from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from app.domain.intervals import Interval
from app.domain.yardstick import Point, best_of_n_kl, enough, expected_best, measure, sizes, yardstick


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_kl_is_the_divergence_of_the_best_of_n(n: int) -> None:
    # The best of n uniform numbers has the density n u^(n-1): KL = the integral of n u^(n-1) ln(n u^(n-1)) over [0, 1].
    steps = 20_000
    middles = ((i + 0.5) / steps for i in range(steps))
    integral = sum(n * u ** (n - 1) * math.log(n * u ** (n - 1)) for u in middles) / steps
    assert best_of_n_kl(n) == pytest.approx(integral, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_expected_best_is_the_mean_over_all_choices(n: int) -> None:
    scores = [0.3, -1.5, 2.0, 0.3, 7.25]
    assert expected_best(scores, n) == pytest.approx(mean(max(each) for each in combinations(scores, n)))


@pytest.mark.parametrize("n", [0, 3])
def test_there_is_no_best_of_more_than_there_are(n: int) -> None:
    with pytest.raises(ValueError, match="2 scores have no best of"):
        expected_best([1.0, 2.0], n)


def test_which_n_are_looked_at() -> None:
    assert [sizes(n) for n in (2, 3, 4, 8, 11, 16)] == [
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 11],
        [1, 2, 4, 8, 16],
    ]
    # The number that half of the prompts with two or more answers have. A single answer has no information.
    assert [enough(counts) for counts in ([], [1, 1], [4, 4, 2], [4, 2, 2], [4, 2], [64, 64, 1])] == [0, 0, 4, 2, 4, 16]


def test_the_curve_and_the_policy_are_measured_on_the_same_prompts() -> None:
    base = {1: [0.0, 2.0, 5.0], 2: [1.0, 1.0], 3: [9.0]}  # the third has fewer than two answers, and is left out
    new = {1: [3.0], 2: [2.0, 4.0], 3: [100.0]}
    measured = measure({1: base[1][:2], 2: base[2], 3: base[3]}, new)
    assert measured == {
        "eval_base/scores": pytest.approx(1.0),
        "eval_base/best_of_2": pytest.approx((2 + 1) / 2),
        "eval_base/n": 2.0,
        "eval_base/prompts": 2.0,
        "eval_base/gain": pytest.approx(((3 - 1) + (3 - 1)) / 2),
    }
    found = yardstick(measured)
    assert found is not None
    assert found.points == [Point(1, 0.0, 0.0), Point(2, math.log(2) - 0.5, pytest.approx(0.5))]
    assert (found.n, found.prompts, found.gain, found.interval) == (2, 2, pytest.approx(2.0), None)
    # Halfway in sqrt(KL), and nothing beyond the sampled n.
    assert found.at((math.log(2) - 0.5) / 4) == pytest.approx(0.25)
    assert found.at(1.0) is None
    assert found.at(0.0) == 0


def test_without_answers_of_the_reference_there_is_no_yardstick() -> None:
    assert measure({}, {1: [1.0]}) == {}
    assert measure({1: [1.0]}, {1: [1.0]}) == {}
    assert yardstick({}) is None


def test_gaussian_rewards_gain_what_order_statistics_say() -> None:
    """The mean of the largest of four standard normal numbers is 1.0294 (Harter 1961); the gain has an interval."""
    generator = np.random.default_rng(0)
    base = {prompt: generator.normal(size=4).tolist() for prompt in range(4000)}
    measured = measure(base, {prompt: [1.0] for prompt in base})
    assert measured["eval_base/best_of_4"] - measured["eval_base/scores"] == pytest.approx(1.0294, abs=0.03)
    found = yardstick(measured)
    assert found is not None
    assert isinstance(found.interval, Interval)
    # 1.96 standard errors of a mean of 4000 means of four standard normal numbers
    assert found.interval.high - found.gain == pytest.approx(1.96 * 0.5 / 4000**0.5, rel=0.05)
