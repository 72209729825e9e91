"""Find the parts whose agreement is clearly below that of the whole."""

from collections.abc import Sequence
from math import erfc, sqrt

from app.domain.bootstrap import Estimate

GAP = 0.05  # a smaller gap is not worth anybody's time, even if it is certain
FALSE_DISCOVERIES = 0.05


def clearly_below(
    parts: Sequence[Estimate], sizes: Sequence[int], whole: Estimate, size: int, gap: float = GAP
) -> list[bool]:
    """Return whether each part's value lies at least `gap` below the whole's, beyond chance.

    Among thousands of slices, hundreds lie below the whole's interval by chance alone. The step-up procedure of
    Benjamini and Hochberg (1995) keeps the expected share of false discoveries among the marked parts below 5%. The
    test is one-sided. It uses the standard error that a part of this size would have if it were like the whole, because
    a part's own error tends to be too small if its value is low by chance.

    Args:
        parts: a part without a value is not marked.
        sizes: units in each part.
        whole, size: the whole's estimate with its standard error, and its units.
    """
    if whole.value is None or whole.error is None:
        return [False] * len(parts)
    errors = [whole.error * sqrt(size / max(n, 1)) for n in sizes]
    chances = [_chance(part.value, whole.value, error) for part, error in zip(parts, errors, strict=True)]
    limit = 0.0
    for rank, chance in enumerate(sorted(chances), 1):
        if chance <= FALSE_DISCOVERIES * rank / len(chances):
            limit = chance
    return [
        chance <= limit and part.value is not None and whole.value - part.value >= gap
        for part, chance in zip(parts, chances, strict=True)
    ]


def _chance(value: float | None, whole: float, error: float) -> float:
    """Return the probability of a value this low if the part is like the whole."""
    if value is None or value >= whole or error == 0:
        return 1.0
    return erfc((whole - value) / error / sqrt(2)) / 2
