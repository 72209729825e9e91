"""Whether two sets of prompts are alike: two classical tests, each with the size of the difference beside its p."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

FEWEST_EXPECTED = 5  # in a cell of the chi-squared test: rarer tags are counted together
TERMS = 100  # of Kolmogorov's series


class Difference(NamedTuple):
    """How far two samples are apart.

    Attributes:
        size: of tags, the share of prompts that would have to change theirs (total variation); of numbers, the largest
            distance of the distribution functions.
        p: the probability of at least such a difference between two samples of one kind.
    """

    size: float
    p: float


def of_tags(first: Sequence[str], second: Sequence[str]) -> Difference:
    """Pearson's chi-squared test of homogeneity (1900). Tags that are too rare for it are counted together."""
    a, b = Counter(first), Counter(second)
    n, m = len(first), len(second)
    size = sum(abs(a[tag] / n - b[tag] / m) for tag in a | b) / 2
    rare = [tag for tag in a | b if (a[tag] + b[tag]) * min(n, m) / (n + m) < FEWEST_EXPECTED]
    cells = [(a[tag], b[tag]) for tag in a | b if tag not in rare]
    if rare:
        cells.append((sum(a[tag] for tag in rare), sum(b[tag] for tag in rare)))
    statistic = 0.0
    for x, y in cells:
        for seen, share in ((x, n / (n + m)), (y, m / (n + m))):
            expected = (x + y) * share
            statistic += (seen - expected) ** 2 / expected
    return Difference(size, chi_squared_tail(statistic, len(cells) - 1) if len(cells) > 1 else 1.0)


def of_numbers(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The two-sample test of Kolmogorov and Smirnov (1939), by its limiting distribution."""
    size = 0.0
    for value in {*first, *second}:
        shares = [sum(x <= value for x in sample) / len(sample) for sample in (first, second)]
        size = max(size, abs(shares[0] - shares[1]))
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    return Difference(size, kolmogorov_tail(root * size))


def chi_squared_tail(x: float, degrees: int) -> float:
    """P(X > x) of a chi-squared variable of whole degrees of freedom: a finite sum (Abramowitz & Stegun 26.4.4-5)."""
    if x <= 0:
        return 1.0
    if degrees % 2 == 0:
        term = total = math.exp(-x / 2)
        for k in range(1, degrees // 2):
            term *= x / (2 * k)
            total += term
        return total
    total, term = math.erfc(math.sqrt(x / 2)), math.sqrt(2 * x / math.pi) * math.exp(-x / 2)
    for k in range(1, (degrees + 1) // 2):
        total += term
        term *= x / (2 * k + 1)
    return total


def kolmogorov_tail(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution."""
    if x < 0.2:
        return 1.0  # to 12 digits; the series does not come to an end there
    total = sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, TERMS))
    return min(1.0, max(0.0, 2 * total))


def grown(first: Mapping[str, int], second: Mapping[str, int]) -> str:
    """The tag whose share grew most from the first to the second."""
    n, m = sum(first.values()), sum(second.values())
    return max(second, key=lambda tag: second[tag] / m - first.get(tag, 0) / n)
