"""Which slices are marked: slices that are lower, not slices with bad luck."""

from math import sqrt

import numpy as np

from app.domain.bootstrap import Estimate
from app.domain.weak_parts import clearly_below

# Its standard error is 0.5 over the root of 10,000; that of a part of 100 is 0.05.
WHOLE, SIZE = Estimate(0.7, 0.69, 0.71, 0.005), 10_000


def below(values: list[float | None], sizes: list[int]) -> list[bool]:
    return clearly_below([Estimate(value) for value in values], sizes, WHOLE, SIZE)


def test_one_part_alone_by_its_standard_error() -> None:
    # One-sided at 5 %: 1.645 standard errors below the whole.
    assert below([0.70 - 1.60 * 0.05], [100]) == [False]
    assert below([0.70 - 1.70 * 0.05], [100]) == [True]
    assert below([0.70 - 1.60 * 0.05], [200]) == [True]


def test_a_small_difference_is_not_marked_however_sure() -> None:
    assert below([0.66, 0.64], [5000, 5000]) == [False, True]


def test_what_is_undefined_or_higher_is_not_marked() -> None:
    assert below([None, 0.9, 0.0], [100, 100, 100]) == [False, False, True]
    assert below([], []) == []
    assert clearly_below([Estimate(0.1)], [100], Estimate(None), 0) == [False]
    assert clearly_below([Estimate(0.1)], [100], Estimate(0.7), 100) == [False]


def test_among_thousands_of_equal_slices_luck_is_not_marked_and_low_ones_are() -> None:
    rng = np.random.default_rng(1)
    n = 25  # comparisons a slice, two judgments each
    same, low = rng.binomial(n, 0.7, 4900) / n, rng.binomial(n, 0.2, 100) / n
    error = sqrt(0.7 * 0.3 / n)
    whole = Estimate(0.7, None, None, error / sqrt(5000))
    assert (same < 0.7 - 1.96 * error).sum() > 100  # by luck
    marked = np.array(clearly_below([Estimate(float(share)) for share in (*same, *low)], [n] * 5000, whole, n * 5000))
    assert marked[:4900].sum() <= 12  # 5 % of those marked are expected, here about 5
    assert marked[4900:].sum() >= 90
    alone = clearly_below([Estimate(float(share)) for share in same], [n] * 4900, whole, n * 5000)
    assert sum(alone) <= 1
