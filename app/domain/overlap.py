"""The overlap of a comparison (its number of judgments): when it opens, and how answers change it.

These are pure functions: the caller provides slices, posterior and answers.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

# Each "cannot judge" raises the overlap by one, but by at most this number in total.
MOST_GROWTH = 2
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)

Reason = Literal["split", "unjudgeable", "flagged"]


class Rule(NamedTuple):
    """An overlap for a slice or a purpose: `name` is domain, difficulty, safety_category or purpose."""

    name: str
    value: str
    overlap: int


class Overlap(NamedTuple):
    """The overlap of a new comparison. most: the maximum if the overlap adapts to the answers; None if it is fixed."""

    overlap: int
    most: int | None = None


def at_opening(
    tags: Mapping[str, str],
    rules: Sequence[Rule],
    adaptive: tuple[int, int] | None,
    default: int,
    *,
    once: bool = False,
) -> Overlap:
    """Return the overlap of a new comparison.

    The first rule that matches gives a fixed overlap. Otherwise the overlap is adaptive between two bounds, or it is
    the project's default. It is never adaptive in human evaluation.

    Args:
        tags: slices and `purpose` of the comparison.
        adaptive: (minimum, maximum) if the project's overlap is adaptive.
        once: whether this comparison was selected for a single judgment instead of `default`; this applies only to
            comparisons for training.
    """
    for rule in rules:
        if tags.get(rule.name) == rule.value:
            return Overlap(rule.overlap)
    # In human evaluation, results must not wait longer for prompts on which people disagree.
    if adaptive and tags.get("purpose") != "human_eval":
        return Overlap(*adaptive)
    return Overlap(1 if once and tags.get("purpose") == "train" else default)


def share_is_most(for_it: float, against: float) -> float:
    """Return the posterior probability, in (0, 1), that more than half of all people are for something.

    Under the Jeffreys prior, the share of people has the posterior Beta(for_it + 1/2, against + 1/2). It is integrated
    above 1/2 with share = sin^2(angle), which turns the density into the polynomial sin^(2 for_it) cos^(2 against).

    Args:
        for_it, against: number of votes; a tie counts half for each.
    """

    def mass(low: float, high: float) -> float:
        angles = low + (NODES + 1) * (high - low) / 2
        # Divide by the maximum, because hundreds of votes would underflow.
        logs = 2 * for_it * np.log(np.sin(angles)) + 2 * against * np.log(np.cos(angles))
        peak = np.arctan2(np.sqrt(for_it), np.sqrt(against)) if for_it + against else np.pi / 4
        top = 2 * for_it * np.log(max(np.sin(peak), 1e-300)) + 2 * against * np.log(max(np.cos(peak), 1e-300))
        return float((WEIGHTS * np.exp(logs - top)).sum() * (high - low) / 2)

    upper, lower = mass(np.pi / 4, np.pi / 2), mass(0.0, np.pi / 4)
    return upper / (upper + lower)


def sureness(preferences: Sequence[int]) -> float:
    """Return the largest of three posterior probabilities: most people prefer A, most prefer B, most see a tie."""
    ties = sum(preference == 0 for preference in preferences)
    for_b = sum(preference > 0 for preference in preferences) + ties / 2
    side = share_is_most(for_b, len(preferences) - for_b)
    return max(side, 1 - side, share_is_most(ties, len(preferences) - ties))


class Asked(NamedTuple):
    """The state of a comparison.

    Attributes:
        overlap: the current overlap.
        grown: growth of the overlap so far because labelers could not judge.
        most: see `Overlap`.
        decided: number of judgments that state a preference.
        sure: whether the posterior has reached the project's confidence to stop.
        could_answer: number of labelers left among those for whom the comparison is reserved; None if it is not
            reserved.
    """

    overlap: int
    grown: int
    most: int | None
    decided: int
    sure: bool
    could_answer: int | None = None


class Growth(NamedTuple):
    """Growth of the overlap, and the part of it that replaces labelers who could not judge."""

    more: int = 0
    grown: int = 0


def growth(asked: Asked) -> Growth:
    """Return how much the overlap grows when a comparison has all its judgments; 0 if it is done."""
    if asked.most is not None:
        more = 0 if asked.sure else min(1, asked.most - asked.overlap)
    else:
        lacking = asked.overlap - asked.grown - asked.decided
        more = max(0, min(lacking, MOST_GROWTH - asked.grown))
    if asked.could_answer is not None:
        more = min(more, asked.could_answer)
    return Growth(more, more if asked.most is None else 0)


def is_unjudgeable(asked: Asked) -> bool:
    """Return whether too few labelers could judge a comparison whose overlap does not grow any more."""
    return asked.decided == 0 or (asked.most is None and asked.decided < asked.overlap - asked.grown)


def agreement(preferences: Sequence[int]) -> float | None:
    """Return the share of pairs of judgments on the same side (A, tie, B); None for fewer than two judgments."""
    n = len(preferences)
    if n < 2:
        return None
    on_side = [sum((p > 0) - (p < 0) == side for p in preferences) for side in (-1, 0, 1)]
    return sum(k * (k - 1) for k in on_side) / (n * (n - 1))


def why_review(asked: Asked, agreed: float | None, threshold: float, *, flagged: bool) -> Reason | None:
    """Return why a finished comparison goes to review; None if it is settled."""
    if is_unjudgeable(asked):
        return "unjudgeable"
    if agreed is not None and agreed < threshold:
        return "split"
    return "flagged" if flagged else None
