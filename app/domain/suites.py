"""Scores of a suite: two policies on the same cases, their difference with its interval, and the gate's decision.

A case passes or fails, so two policies on n cases give four counts. Only cases with different results are informative:
b that only the new policy passes and c that only the previous policy passes. The difference is (b - c) / n.
"""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Literal, NamedTuple

from app.domain.intervals import FEWEST, Interval
from app.domain.proportions import Z_95, wilson

Bound = Literal["high", "low"]
BOUNDS: dict[Bound, str] = {
    "high": "it has surely lost more: the whole interval lies below",
    "low": "it may have lost more: the interval reaches below",
}


class Score(NamedTuple):
    """Results of two policies on the same cases.

    Attributes:
        passed, before: number of cases that the new policy and the previous policy pass.
        gained, lost: number of cases that only the new policy, or only the previous one, passes.
    """

    cases: int
    passed: int
    before: int
    gained: int
    lost: int

    @property
    def share(self) -> float:
        return self.passed / self.cases

    @property
    def share_before(self) -> float:
        return self.before / self.cases

    @property
    def interval(self) -> Interval:
        """The new policy's share of passed cases, with Wilson's interval."""
        bounds = wilson(self.passed, self.cases)
        assert bounds is not None, "a suite has cases"
        return Interval(self.share, *bounds)

    @property
    def change(self) -> float:
        """The new policy's share of passed cases minus the previous policy's."""
        return (self.gained - self.lost) / self.cases

    @property
    def difference(self) -> Interval | None:
        return paired_difference(self.cases, self.gained, self.lost)

    def __add__(self, other: object) -> "Score":
        if not isinstance(other, Score):
            return NotImplemented
        return Score(*(mine + its for mine, its in zip(self, other, strict=True)))


def score(new: Sequence[bool], before: Sequence[bool]) -> Score:
    """Compare two policies on the same cases, at least one, in the same order."""
    pairs = list(zip(new, before, strict=True))
    return Score(
        len(pairs), sum(new), sum(before), sum(n and not b for n, b in pairs), sum(b and not n for n, b in pairs)
    )


def by_slice(slices: Sequence[str], new: Sequence[bool], before: Sequence[bool]) -> dict[str, Score]:
    """Return scores by slice; "" for all cases."""
    members: dict[str, list[int]] = {"": list(range(len(slices)))}
    for i, name in enumerate(slices):
        if name:
            members.setdefault(name, []).append(i)
    return {name: score([new[i] for i in those], [before[i] for i in those]) for name, those in members.items()}


def total(scores: Iterable[Score]) -> Score | None:
    """Return the score over all cases of several suites, each counted once; None without suites."""
    found = list(scores)
    return sum(found[1:], found[0]) if found else None


def paired_difference(cases: int, gained: int, lost: int) -> Interval | None:
    """Return the 95% interval of (gained - lost) / cases; None for fewer than `FEWEST` cases.

    Source: Bonett and Price 2012, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
    Paired Data. It is Wald's interval after adding one imaginary case to each side. Without these cases, two policies
    with equal results would have an interval of width 0, and with few cases the interval would miss too often; the
    bootstrap over cases has both problems. It covers 95% from about ten cases on (tests/domain/test_suites.py counts
    all outcomes).
    """
    if cases < FEWEST:
        return None
    up, down, n = gained + 1, lost + 1, cases + 2
    centre = (up - down) / n
    half = Z_95 * sqrt(((up + down) / n - centre**2) / n)
    return Interval((gained - lost) / cases, max(-1.0, centre - half), min(1.0, centre + half))


def reach(cases: int) -> float:
    """Return the interval's half-width if both policies have the same results on all cases; 1 for too few cases."""
    found = paired_difference(cases, 0, 0)
    return found.high if found else 1.0


def loses_too_much(difference: Interval | None, largest_loss: float, bound: Bound) -> bool:
    """Return whether a gate holds a policy back.

    Args:
        difference: new policy minus previous policy; None (too few cases) does not hold the policy back.
        bound: `high` holds back only if the whole interval is beyond the allowed loss, `low` if a part of it is.
    """
    return difference is not None and getattr(difference, bound) < -largest_loss
