"""The bootstrap over units of a few kinds: estimates with 95% intervals.

To resample a million units, it is enough to draw how often each of the few kinds occurs. Coefficients are computed for
all replicates at once.
"""

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.student import quantile

REPLICATES = 1000
# With very many kinds, there are fewer replicates: at most about DRAWS numbers in total, but at least LEAST replicates.
DRAWS, LEAST = 20_000_000, 200
# Nanoseconds on one core for drawing one unit, and for drawing one kind's frequency from a binomial.
DRAW_UNIT, DRAW_KIND = 8, 60
BLOCK = 4_000_000  # numbers to draw and hold at once


class Estimate(NamedTuple):
    """A coefficient, its 95% interval and standard error; None if undefined or if resampling shows no spread."""

    value: float | None
    low: float | None = None
    high: float | None = None
    error: float | None = None


def affordable(kinds: int, replicates: int = REPLICATES) -> int:
    """Return the number of replicates that take a second or two for `kinds` kinds, summed over all estimates."""
    return min(replicates, max(LEAST, DRAWS // max(1, kinds)))


def estimates(
    frequencies: NDArray[np.int64],
    coefficients: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    rng: np.random.Generator,
    replicates: int = REPLICATES,
    telling: int | None = None,
) -> list[Estimate]:
    """Estimate coefficients of units of K kinds, with percentile intervals (Efron 1979) from resampling the units.

    Args:
        frequencies: (K,) number of units of each kind; at least one unit in total.
        coefficients: (R, K) frequencies -> (C, R) coefficients of each of R samples, NaN where undefined.
        replicates: number of replicates; 0 gives values without intervals.
        telling: number of units that carry information about the coefficients, by default all. With few, intervals are
            widened.

    Returns:
        C estimates. An estimate has no interval if at least half of its replicates are undefined, because the others
        say little about its spread. Nor does it have one if all replicates are equal: a handful of units that happen to
        be equal does not make a value certain.
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
    """Draw n units with replacement from n units; return how often each kind occurs (replicates, K)."""
    n, kinds = int(frequencies.sum()), len(frequencies)
    if n * DRAW_UNIT > kinds * DRAW_KIND:
        return rng.multinomial(n, frequencies / n, size=replicates)
    drawn = np.repeat(np.arange(kinds), frequencies)[rng.integers(n, size=(replicates, n))]
    drawn += np.arange(replicates)[:, None] * kinds
    return np.bincount(drawn.ravel(), minlength=replicates * kinds).reshape(replicates, kinds)


def tail(units: int) -> float:
    """Return the share of replicates outside a 95% interval on either side: 2.5%, or less for few units.

    The bootstrap's percentiles behave like those of a normal with the sample's own spread. They are narrower than
    Student's t by its quantile and by sqrt((n - 1) / n). The smaller share corrects both (Hesterberg 2015, What
    Teachers Should Know About the Bootstrap, The American Statistician 69, "expanded percentile interval").
    """
    if units < 2:
        return 0.0
    return NormalDist().cdf(-quantile(0.975, units - 1) * sqrt(units / (units - 1)))


def _intervals(spread: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """Return both tail quantiles and the standard deviations (3, C) of (C, R) replicates.

    They are NaN if half of the replicates are undefined or all are equal. The results equal those of `np.nanquantile`
    and `np.nanstd`, which would take most of the time for thousands of slices.
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
