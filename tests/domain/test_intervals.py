"""Intervals over clusters, by arithmetic."""

import pytest

from app.domain.intervals import FEWEST, clustered_share, mean_interval


def test_the_interval_of_a_mean() -> None:
    found = mean_interval(range(1, 11))  # deviation sqrt(55 / 6), t(9) = 2.262157
    assert found is not None
    half = 2.262157 * (55 / 6) ** 0.5 / 10**0.5
    assert found == pytest.approx((5.5, 5.5 - half, 5.5 + half), abs=1e-3)
    assert mean_interval([1.0] * (FEWEST - 1)) is None
    assert mean_interval([0.25] * FEWEST) == (0.25, 0.25, 0.25)


def test_one_case_a_cluster_is_wilsons_interval() -> None:
    found = clustered_share([(1, 1)] * 25 + [(0, 1)] * 15)
    assert found is not None
    # Wilson 1927 of 25 in 40: centre (0.625 + z^2/80) / (1 + z^2/40), z = 1.96
    assert found == pytest.approx((0.625, 0.4703, 0.7578), abs=2e-4)
    assert clustered_share([]) is None


def test_cases_that_say_the_same_count_as_one_a_cluster() -> None:
    alone = clustered_share([(1, 1)] * 6 + [(0, 1)] * 4)
    fourfold = clustered_share([(4, 4)] * 6 + [(0, 4)] * 4)
    apart = clustered_share([(1, 1)] * 24 + [(0, 1)] * 16)
    assert fourfold == pytest.approx(alone)
    assert apart is not None
    assert fourfold is not None
    assert apart.high - apart.low < 0.6 * (fourfold.high - fourfold.low)
    # One prompt with twenty cases and five prompts with one case, all won: Kish's 25^2 / (20^2 + 5), about 1.5 cases.
    uneven = clustered_share([(20, 20)] + [(1, 1)] * 5)
    assert uneven is not None
    cases = 25**2 / 405
    assert uneven.low == pytest.approx(cases / (cases + 1.96**2), abs=1e-3)  # Wilson's bound of a share of 1
    # If every cluster contains the same mixture, the cases are as good as independent: 40 of them at 0.5.
    mixed = clustered_share([(2, 4)] * 10)
    assert mixed is not None
    assert mixed.high - mixed.low > 0.4  # without any spread, the data cannot show this: 10 cases are counted
