"""Which slices are marked: those that are lower, not those that are unlucky."""

from math import sqrt

import numpy as np

from app.domain.attention import clearly_below
from app.domain.bootstrap import Estimate


def part(value: float | None, error: float | None) -> Estimate:
    return Estimate(value, None, None, error)


def test_one_part_alone_by_its_standard_error() -> None:
    # One-sided at 5 %: 1.645 standard errors below the whole.
    assert clearly_below([part(0.70 - 1.60 * 0.05, 0.05)], 0.7) == [False]
    assert clearly_below([part(0.70 - 1.70 * 0.05, 0.05)], 0.7) == [True]


def test_a_small_difference_is_not_marked_however_sure() -> None:
    assert clearly_below([part(0.66, 0.001), part(0.64, 0.001)], 0.7) == [False, True]


def test_what_is_undefined_or_higher_is_not_marked() -> None:
    parts = [part(None, None), part(0.2, None), part(0.9, 0.01), part(0.0, 0.0)]
    assert clearly_below(parts, 0.7) == [False, False, False, True]
    assert clearly_below([], 0.7) == []


def test_among_thousands_of_equal_slices_luck_is_not_marked_and_low_ones_are() -> None:
    rng = np.random.default_rng(1)
    n = 60  # comparisons a slice, two judgments each
    same, low = rng.binomial(n, 0.7, 4900) / n, rng.binomial(n, 0.35, 100) / n
    parts = [part(share, sqrt(max(share * (1 - share), 0.01) / n)) for share in (*same, *low)]
    marked = np.array(clearly_below(parts, 0.7))
    assert (np.array([p.value for p in parts[:4900]]) < 0.7 - 1.96 * 0.059).sum() > 100  # by luck, below an interval
    assert marked[:4900].sum() <= 15  # 5 % of those marked are expected, here about 5
    assert marked[4900:].sum() >= 95
