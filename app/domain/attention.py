"""Which of many parts agree clearly less than the whole."""

from collections.abc import Sequence
from math import erfc, sqrt

from app.domain.bootstrap import Estimate

GAP = 0.05  # less is not worth anybody's time, however sure
FALSE_DISCOVERIES = 0.05


def clearly_below(parts: Sequence[Estimate], whole: float, gap: float = GAP) -> list[bool]:
    """Of each part, whether its value lies at least `gap` below the whole's and not by luck.

    Among thousands of slices hundreds lie below the whole's interval by luck alone. The step-up procedure of Benjamini
    and Hochberg (1995) keeps the expected share of lucky ones among those marked below 5%. One-sided, with the
    bootstrap's standard error; a part without one is not marked.
    """
    chances = [_chance(part, whole) for part in parts]
    limit = 0.0
    for rank, chance in enumerate(sorted(chances), 1):
        if chance <= FALSE_DISCOVERIES * rank / len(chances):
            limit = chance
    return [
        chance <= limit and part.value is not None and whole - part.value >= gap
        for part, chance in zip(parts, chances, strict=True)
    ]


def _chance(part: Estimate, whole: float) -> float:
    """How likely a value as low as this is where the part is like the whole."""
    if part.value is None or part.error is None or part.value >= whole:
        return 1.0
    return 0.0 if part.error == 0 else erfc((whole - part.value) / part.error / sqrt(2)) / 2
