"""95% intervals of means and shares over clusters such as prompts, because answers to one prompt are similar."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from app.domain.proportions import wilson
from app.domain.student import quantile

FEWEST = 5  # minimum number of clusters: with fewer, an interval says nothing


class Interval(NamedTuple):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's t-interval of the mean of one value per cluster; None for fewer than `FEWEST` clusters."""
    n = len(values)
    if n < FEWEST:
        return None
    mean = sum(values) / n
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = quantile(0.975, n - 1) * deviation / sqrt(n)
    return Interval(mean, mean - half, mean + half)


def clustered_mean(clusters: Sequence[tuple[float, float]]) -> Interval | None:
    """Return Student's t-interval of a mean over cases, from each cluster's (sum, cases).

    None for fewer than `FEWEST` clusters. The variance is that of the clusters' sums about the mean (Liang and Zeger
    1986), with the factor k / (k - 1) for few clusters.
    """
    n, k = sum(cases for _, cases in clusters), len(clusters)
    if k < FEWEST:
        return None
    mean = sum(total for total, _ in clusters) / n
    spread = sum((total - mean * cases) ** 2 for total, cases in clusters)
    half = quantile(0.975, k - 1) * sqrt(k / (k - 1) * spread) / n
    return Interval(mean, mean - half, mean + half)


def clustered_share(clusters: Sequence[tuple[float, float]]) -> Interval | None:
    """Return the Wilson interval of a share over clusters of (successes, cases); None without cases.

    Wilson's interval assumes independent cases, so it gets the number of independent cases with the same variance (the
    effective sample size, Kish 1965). This is at most the number of cases. It is at least the number that results if
    all cases of a cluster are equal. That is one per cluster if clusters have the same size, and fewer if a few
    clusters have most cases.
    """
    n, k = sum(cases for _, cases in clusters), len(clusters)
    if n == 0:
        return None
    share = sum(won for won, _ in clusters) / n
    least = effective = n**2 / sum(cases**2 for _, cases in clusters)
    if k > 1 and (spread := sum((won - share * cases) ** 2 for won, cases in clusters)):
        effective = share * (1 - share) / (k / (k - 1) * spread / n**2)
    effective = min(max(effective, least), float(n))
    interval = wilson(share * effective, effective)
    assert interval is not None, "something was counted"
    return Interval(share, *interval)
