"""Scores of a suite: two policies on the same cases, the difference with its interval, and what a gate makes of it.

A case passes or fails, so two policies on n cases give four counts. Only the cases on which they differ tell anything:
b that only the new policy passes, c that only the one before passes. The difference is (b - c) / n.
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
    """How two policies did on the same cases.

    Attributes:
        passed, before: cases that the new policy passes, and the one before.
        gained, lost: cases that only the new policy passes, or only the one before.
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
        """The new policy's share of cases passed, with Wilson's interval."""
        bounds = wilson(self.passed, self.cases)
        assert bounds is not None, "a suite has cases"
        return Interval(self.share, *bounds)

    @property
    def change(self) -> float:
        """Share passed by the new policy less that of the one before."""
        return (self.gained - self.lost) / self.cases

    @property
    def difference(self) -> Interval | None:
        return paired_difference(self.cases, self.gained, self.lost)

    def __add__(self, other: object) -> "Score":
        if not isinstance(other, Score):
            return NotImplemented
        return Score(*(mine + its for mine, its in zip(self, other, strict=True)))


def score(new: Sequence[bool], before: Sequence[bool]) -> Score:
    """Compares two policies on the same cases, in the same order; there is at least one."""
    pairs = list(zip(new, before, strict=True))
    return Score(
        len(pairs), sum(new), sum(before), sum(n and not b for n, b in pairs), sum(b and not n for n, b in pairs)
    )


def by_slice(slices: Sequence[str], new: Sequence[bool], before: Sequence[bool]) -> dict[str, Score]:
    """Scores by slice; "" for all cases."""
    members: dict[str, list[int]] = {"": list(range(len(slices)))}
    for i, name in enumerate(slices):
        if name:
            members.setdefault(name, []).append(i)
    return {name: score([new[i] for i in those], [before[i] for i in those]) for name, those in members.items()}


def total(scores: Iterable[Score]) -> Score | None:
    """All cases of several suites together, each counted once; none of no suite."""
    found = list(scores)
    return sum(found[1:], found[0]) if found else None


def paired_difference(cases: int, gained: int, lost: int) -> Interval | None:
    """The 95% interval of (gained - lost) / cases; none for fewer than `FEWEST` cases.

    Bonett and Price 2012, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
    Data: Wald's interval after one imaginary case is added to either side. Without them, two policies that no case
    tells apart would have an interval of no width, and with few cases it would miss too often: the bootstrap over cases
    has both faults. It keeps its 95% from about ten cases on (tests/domain/test_suites.py counts all outcomes).
    """
    if cases < FEWEST:
        return None
    up, down, n = gained + 1, lost + 1, cases + 2
    centre = (up - down) / n
    half = Z_95 * sqrt(((up + down) / n - centre**2) / n)
    return Interval((gained - lost) / cases, max(-1.0, centre - half), min(1.0, centre + half))


def reach(cases: int) -> float:
    """How far the interval reaches to either side if both policies do the same on every case; 1 for too few cases."""
    found = paired_difference(cases, 0, 0)
    return found.high if found else 1.0


def loses_too_much(difference: Interval | None, largest_loss: float, bound: Bound) -> bool:
    """Whether a gate holds a policy back.

    Args:
        difference: new policy less the one before; none (too few cases) holds nothing back.
        bound: `high`: the whole interval must lie below the allowed loss; `low`: it is enough that a part does.
    """
    return difference is not None and getattr(difference, bound) < -largest_loss
