"""The bootstrap over units that come in few kinds: estimates with their 95% intervals.

Resampling a million units is drawing how often each of their few kinds comes up; what is computed from the draws is
computed for all replicates at once.
"""

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.student import quantile

REPLICATES = 1000
# Where there are very many kinds in all, replicates are fewer: this many numbers are drawn, or the least replicates.
DRAWS, LEAST = 20_000_000, 200
# What drawing costs in nanoseconds on one core: a unit by its number, or how often a kind comes up as a binomial.
DRAW_UNIT, DRAW_KIND = 8, 60
BLOCK = 4_000_000  # numbers drawn and held at once


class Estimate(NamedTuple):
    """A coefficient, its 95% interval and standard error; none where undefined or where resampling shows no spread."""

    value: float | None
    low: float | None = None
    high: float | None = None
    error: float | None = None


def affordable(kinds: int, replicates: int = REPLICATES) -> int:
    """How many replicates of so many kinds, over everything to be estimated, take a second or two."""
    return min(replicates, max(LEAST, DRAWS // max(1, kinds)))


def estimates(
    frequencies: NDArray[np.int64],
    coefficients: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    rng: np.random.Generator,
    replicates: int = REPLICATES,
    telling: int | None = None,
) -> list[Estimate]:
    """Coefficients of units of K kinds, with percentile intervals (Efron 1979) from resampling the units.

    Args:
        frequencies: (K,) how many units are of each kind; at least one in all.
        coefficients: (R, K) frequencies -> (C, R) coefficients of each of R samples, NaN where undefined.
        replicates: 0 gives the values alone.
        telling: how many units say anything about the coefficients, by default all: with few, intervals are widened.

    Returns:
        C estimates. One that is undefined in more than half of the replicates has no interval: what is left would say
        little of how it spreads. Nor has one that is the same in all: a handful of units that happen to be alike does
        not make anything certain.
    """
    values = coefficients(frequencies[None])[:, 0]
    size = max(1, BLOCK // max(len(frequencies), min(int(frequencies.sum()), 10 * len(frequencies))))
    blocks = [min(size, replicates - begin) for begin in range(0, replicates, size)]
    drawn = [coefficients(resampled(frequencies, block, rng)) for block in blocks]
    spread = np.concatenate(drawn, axis=1) if drawn else np.empty((len(values), 0))
    low, high, error = _intervals(spread, tail(int(frequencies.sum()) if telling is None else telling))
    return [
        Estimate(None)
        if np.isnan(value)
        else Estimate(float(value), *(None if np.isnan(x) else float(x) for x in rest))
        for value, *rest in zip(values, low, high, error, strict=True)
    ]


def resampled(frequencies: NDArray[np.int64], replicates: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(replicates, K) how often each kind comes up when as many units as there are get drawn with replacement."""
    n, kinds = int(frequencies.sum()), len(frequencies)
    if n * DRAW_UNIT > kinds * DRAW_KIND:
        return rng.multinomial(n, frequencies / n, size=replicates)
    drawn = np.repeat(np.arange(kinds), frequencies)[rng.integers(n, size=(replicates, n))]
    drawn += np.arange(replicates)[:, None] * kinds
    return np.bincount(drawn.ravel(), minlength=replicates * kinds).reshape(replicates, kinds)


def tail(units: int) -> float:
    """What share of replicates lies outside a 95% interval on either side: 2.5%, and less where units are few.

    Percentiles of the bootstrap are those of a normal with the spread of the sample itself: narrower than Student's by
    its quantile and by sqrt((n - 1) / n). These undo both (Hesterberg 2015, What Teachers Should Know About the
    Bootstrap, The American Statistician 69, "expanded percentile interval").
    """
    if units < 2:
        return 0.0
    return NormalDist().cdf(-quantile(0.975, units - 1) * sqrt(units / (units - 1)))


def _intervals(spread: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """(3, C) the quantiles at both tails and standard deviations of (C, R) replicates; NaN where half are undefined, or
    all the same.

    As `np.nanquantile` and `np.nanstd`, which take longer than all the rest for thousands of slices.
    """
    found = np.full((3, len(spread)), np.nan)
    ordered = np.sort(spread, axis=1)  # NaN last
    is_defined = ~np.isnan(ordered)
    n = is_defined.sum(axis=1)
    rows = np.flatnonzero(2 * n > spread.shape[1])
    ordered, is_defined, n = ordered[rows], is_defined[rows], n[rows]
    for bound, share in zip(found, (tail, 1 - tail), strict=False):
        place = share * (n - 1)
        before = place.astype(np.int64)
        left, right = (ordered[np.arange(len(rows)), np.minimum(at, n - 1)] for at in (before, before + 1))
        bound[rows] = left + (place - before) * (right - left)
    values = np.where(is_defined, ordered, 0.0)
    apart = np.where(is_defined, values - (values.sum(axis=1) / n)[:, None], 0.0)
    found[2, rows] = np.sqrt((apart**2).sum(axis=1) / n)
    found[:, found[1] - found[0] < 1e-12] = np.nan
    return found
