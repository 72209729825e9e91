"""May a judge stand beside people? The alternative annotator test (Calderon, Reichart and Dror 2025).

Each labeler j is left out in turn. On every item that j and others judged, the judge and j are compared: who agrees
more with the others? Let d be 1 where only j is at least as good, -1 where only the judge is, 0 where they are equal.
The judge has the advantage over j, within what it costs to use people (epsilon), if the mean of d is below epsilon:
a one-sided paired t-test. The p-values of all labelers are held to a false discovery rate of q by Benjamini and
Yekutieli (2001), which needs no independence. The judge passes if it wins over at least half of the labelers.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

from scipy.special import stdtr

LEAST_ITEMS = 30  # shared with a labeler: fewer say too little, and the t-test needs them
LEAST_LABELERS = 3
WINNING_RATE = 0.5
EPSILON = 0.15
Q = 0.05


class Said(NamedTuple):
    """One labeler's word on an item: -1 for A, 0 for a tie, 1 for B."""

    item: int
    labeler: int
    side: int


class Beside(NamedTuple):
    """The judge beside one labeler.

    Attributes:
        items: both judged, and at least one other person did.
        judge: share of items on which the judge agrees with the others at least as well as the labeler does.
        human: the reverse. Both count items on which they agree equally well.
        p: of the hypothesis that the labeler's share exceeds the judge's by epsilon or more.
        is_won: whether that is rejected.
    """

    labeler: int
    items: int
    judge: float
    human: float
    p: float
    is_won: bool


class Outcome(NamedTuple):
    """What the test says. omega: share of labelers the judge wins over. advantage: mean of `Beside.judge`.

    few: labelers that share too few items, and how many.
    """

    beside: list[Beside]
    few: dict[int, int]
    omega: float | None
    advantage: float | None
    passed: bool
    reason: str  # why not; empty if it passed


def beside_people(
    judged: dict[int, int],
    said: Iterable[Said],
    epsilon: float = EPSILON,
    q: float = Q,
    least_items: int = LEAST_ITEMS,
    least_labelers: int = LEAST_LABELERS,
) -> Outcome:
    """The test of one judge.

    Args:
        judged: the judge's side by item.
        said: people's words; a labeler judges an item once.
        epsilon: how much worse than a labeler the judge may be, since it costs less: 0.2 beside experts, 0.15 beside
            skilled labelers, 0.1 beside crowds (section 4 of the paper).
    """
    by_item: dict[int, dict[int, int]] = defaultdict(dict)
    for each in said:
        if each.item in judged:
            by_item[each.item][each.labeler] = each.side
    differences: dict[int, list[tuple[int, int]]] = defaultdict(list)  # labeler -> (judge at least as good, human)
    for item, people in by_item.items():
        for labeler, side in people.items():
            others = [other for who, other in people.items() if who != labeler]
            if others:
                machine, human = others.count(judged[item]), others.count(side)
                differences[labeler].append((int(machine >= human), int(human >= machine)))
    few = {who: len(rows) for who, rows in differences.items() if len(rows) < least_items}
    tested = {who: rows for who, rows in sorted(differences.items()) if len(rows) >= least_items}
    if len(tested) < least_labelers:
        reason = (
            f"The test needs {least_labelers} labelers who each judged {least_items} comparisons that the judge and "
            f"somebody else judged too; there {'is' if len(tested) == 1 else 'are'} {len(tested)}."
        )
        return Outcome([], few, None, None, False, reason)
    p_values = [_p([human - machine for machine, human in rows], epsilon) for rows in tested.values()]
    won = benjamini_yekutieli(p_values, q)
    beside = [
        Beside(who, len(rows), _mean([m for m, _ in rows]), _mean([h for _, h in rows]), p, is_won)
        for (who, rows), p, is_won in zip(tested.items(), p_values, won, strict=True)
    ]
    omega = sum(won) / len(won)
    passed = omega >= WINNING_RATE
    reason = "" if passed else f"It is as good as {sum(won)} of {len(won)} labelers; half of them are needed."
    return Outcome(beside, few, omega, _mean([each.judge for each in beside]), passed, reason)


def _p(d: Sequence[int], epsilon: float) -> float:
    """One-sided p-value of the paired t-test of H0: the mean of d is epsilon or more."""
    n = len(d)
    mean = sum(d) / n
    spread = sum((each - mean) ** 2 for each in d) / (n - 1)
    if spread == 0:  # no item differs from another: nothing is left to chance
        return 0.0 if mean < epsilon else 1.0
    return float(stdtr(n - 1, (mean - epsilon) / sqrt(spread / n)))


def benjamini_yekutieli(p_values: Sequence[float], q: float) -> list[bool]:
    """Which hypotheses are rejected, so that at most a share q of the rejected ones is expected to be true."""
    m = len(p_values)
    harmonic = sum(1 / k for k in range(1, m + 1))
    order = sorted(range(m), key=lambda i: p_values[i])
    largest = max((k for k, i in enumerate(order, 1) if p_values[i] <= k * q / (m * harmonic)), default=0)
    rejected = set(order[:largest])
    return [i in rejected for i in range(m)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
