"""The bootstrap: its draws, and the width of its intervals against theory."""

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import bootstrap
from app.domain.bootstrap import Estimate, affordable, estimates, resampled, tail
from app.domain.proportions import wilson


def share_of_first(times: NDArray[np.int64]) -> NDArray[np.float64]:
    return (times[:, 0] / times.sum(axis=1))[None]


@pytest.mark.parametrize("frequencies", [[3, 1, 0, 2, 1, 1, 1], [5000, 2500, 0, 2500]], ids=["by unit", "by kind"])
def test_draws_are_as_many_units_in_the_proportions_there_are(frequencies: list[int]) -> None:
    had = np.array(frequencies)
    n = had.sum()
    drawn = resampled(had, 4000, np.random.default_rng(1))
    assert drawn.shape == (4000, len(had))
    assert (drawn.sum(axis=1) == n).all()
    assert (drawn[:, had == 0] == 0).all()
    # Each is binomial(n, f / n): its mean f within 4 standard errors, its variance f (1 - f / n) within 10 %.
    variance = had * (1 - had / n)
    assert (np.abs(drawn.mean(axis=0) - had) <= 4 * np.sqrt(variance / 4000)).all()
    assert drawn.var(axis=0) == pytest.approx(variance, rel=0.1)


def test_both_ways_of_drawing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    had = np.array([40, 10, 30])

    def spread(cost: int) -> NDArray[np.float64]:
        monkeypatch.setattr(bootstrap, "DRAW_KIND", cost)
        return np.cov(resampled(had, 20_000, np.random.default_rng(2)).T)

    assert spread(0) == pytest.approx(spread(10**6), abs=0.6)  # variances of 20, 8.75 and 18.75


def test_the_interval_of_a_share_is_that_of_a_binomial() -> None:
    (found,) = estimates(np.array([620, 380]), share_of_first, np.random.default_rng(3), 4000)
    low, high = wilson(620, 1000) or (0, 0)
    assert found.value == 0.62
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    assert found.error == pytest.approx(np.sqrt(0.62 * 0.38 / 1000), rel=0.05)


def test_the_same_seed_gives_the_same_interval_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    had = np.array([30, 20, 50])
    whole = estimates(had, share_of_first, np.random.default_rng(4))
    assert whole == estimates(had, share_of_first, np.random.default_rng(4))
    monkeypatch.setattr(bootstrap, "BLOCK", 3000)
    (in_blocks,) = estimates(had, share_of_first, np.random.default_rng(4))
    assert in_blocks.low == pytest.approx(whole[0].low, abs=0.02)


def test_what_is_undefined_is_none_and_rarely_defined_has_no_interval() -> None:
    def coefficients(times: NDArray[np.int64]) -> NDArray[np.float64]:
        first, second = times.T
        never = np.full(len(times), np.nan)
        # A replicate without a unit of the second kind happens in about 1 of 3 draws of 100.
        return np.stack([never, np.where(second == 0, np.nan, first), np.where(second == 1, 1.0, np.nan)])

    never, mostly, rarely = estimates(np.array([99, 1]), coefficients, np.random.default_rng(5))
    assert never == Estimate(None, None, None, None)
    assert mostly.value == 99
    assert mostly.low is not None
    assert rarely == Estimate(1.0, None, None, None)  # second == 1 in 37 % of the draws


def test_intervals_are_numpys_quantiles_and_deviations() -> None:
    spread = np.random.default_rng(6).normal(size=(4, 501))
    spread[1, ::3] = np.nan
    spread[2, 1:] = np.nan
    low, high, error = bootstrap._intervals(spread, 0.025)
    for row in (0, 1, 3):
        assert (low[row], high[row]) == pytest.approx(np.nanquantile(spread[row], (0.025, 0.975)), abs=1e-12)
        assert error[row] == pytest.approx(np.nanstd(spread[row]), abs=1e-12)
    assert np.isnan([low[2], high[2], error[2]]).all()


def test_replicates_are_fewer_only_where_there_are_very_many_kinds() -> None:
    assert [affordable(kinds) for kinds in (0, 1, 20_000, 40_000, 10**6)] == [1000, 1000, 1000, 500, 200]
    assert affordable(10, replicates=300) == 300


def test_values_alone() -> None:
    assert estimates(np.array([1, 3]), share_of_first, np.random.default_rng(0), 0) == [Estimate(0.25)]


def test_tails_are_students() -> None:
    # Student's 97.5% quantiles from the usual table: 2.776 of 4, 2.262 of 9 and 2.045 of 29 degrees of freedom.
    for units, t in ((5, 2.776445), (10, 2.262157), (30, 2.045230)):
        assert tail(units) == pytest.approx(NormalDist().cdf(-t * (units / (units - 1)) ** 0.5), rel=0.03)
    assert tail(10**6) == pytest.approx(0.025, abs=1e-5)
    assert tail(1) == tail(0) == 0.0


@pytest.mark.parametrize("units", [6, 12, 30])
def test_intervals_of_few_units_hold_the_truth_as_often_as_they_say(units: int) -> None:
    """The mean of normal numbers. Plain percentiles would contain the truth in 87%, 92% and 94% of samples."""
    rng, held = np.random.default_rng(units), 0
    for _ in range(1500):
        numbers = rng.normal(size=units)
        (found,) = estimates(np.ones(units, dtype=int), lambda times, x=numbers: (times @ x / units)[None], rng, 600)
        held += (found.low or 0) <= 0 <= (found.high or 0)
    assert held / 1500 == pytest.approx(0.95, abs=0.02)


def test_units_that_are_all_alike_make_nothing_certain() -> None:
    assert estimates(np.array([7, 0]), share_of_first, np.random.default_rng(0)) == [Estimate(1.0)]
