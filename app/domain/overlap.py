"""How many judgments a comparison gets: what is asked for when it opens, and what its answers then make of it.

Pure: the caller knows the slices, the posterior and the answers.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

# However many cannot judge a comparison: so many more are asked than were wanted at first.
MOST_GROWTH = 2
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)

Reason = Literal["split", "unjudgeable", "flagged"]


class Rule(NamedTuple):
    """Another overlap for a slice or a purpose: `name` is domain, difficulty, safety_category or purpose."""

    name: str
    value: str
    overlap: int


class Overlap(NamedTuple):
    """What a new comparison asks for. most: the cap where it adapts to the answers; none: it is fixed."""

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
    """The first rule that fits asks for exactly so many; else overlap adapts between two bounds, or is the project's.
    It never adapts where policies are compared.

    Args:
        tags: slices and `purpose` of the comparison.
        adaptive: (at least, at most), where the project's overlap adapts.
        once: whether this is one of those that one person judges in place of `default`, unless it only measures.
    """
    for rule in rules:
        if tags.get(rule.name) == rule.value:
            return Overlap(rule.overlap)
    # A sequence of values that people are asked for must not wait longer for those on which they differ.
    if adaptive and tags.get("purpose") != "human_eval":
        return Overlap(*adaptive)
    return Overlap(1 if once and tags.get("purpose") == "train" else default)


def share_is_most(for_it: float, against: float) -> float:
    """The posterior probability that more than half of all people are for something, after so many votes; in (0, 1).

    The share has the posterior Beta(for_it + 1/2, against + 1/2) under the Jeffreys prior. Its upper half is integrated
    with share = sin^2(angle), which turns the density into the polynomial sin^(2 for_it) cos^(2 against).

    Args:
        for_it, against: votes; a tie counts half for each.
    """

    def mass(low: float, high: float) -> float:
        angles = low + (NODES + 1) * (high - low) / 2
        # Divided by its greatest value, or hundreds of votes would underflow.
        logs = 2 * for_it * np.log(np.sin(angles)) + 2 * against * np.log(np.cos(angles))
        peak = np.arctan2(np.sqrt(for_it), np.sqrt(against)) if for_it + against else np.pi / 4
        top = 2 * for_it * np.log(max(np.sin(peak), 1e-300)) + 2 * against * np.log(max(np.cos(peak), 1e-300))
        return float((WEIGHTS * np.exp(logs - top)).sum() * (high - low) / 2)

    upper, lower = mass(np.pi / 4, np.pi / 2), mass(0.0, np.pi / 4)
    return upper / (upper + lower)


def sureness(preferences: Sequence[int]) -> float:
    """How probable the likeliest of these is: most people prefer A, most prefer B, most see a tie."""
    ties = sum(preference == 0 for preference in preferences)
    for_b = sum(preference > 0 for preference in preferences) + ties / 2
    side = share_is_most(for_b, len(preferences) - for_b)
    return max(side, 1 - side, share_is_most(ties, len(preferences) - ties))


class Asked(NamedTuple):
    """Where a comparison stands.

    grown: by how many the overlap has grown because labelers could not judge. most: see Overlap. decided: judgments
    that say a preference. sure: the posterior is as sure as the project wants it. could_answer: how many of those it is
    kept for are left; none: it is kept for nobody.
    """

    overlap: int
    grown: int
    most: int | None
    decided: int
    sure: bool
    could_answer: int | None = None


class Growth(NamedTuple):
    """By how many judgments the overlap grows, and how many of these stand in for labelers who could not judge."""

    more: int = 0
    grown: int = 0


def growth(asked: Asked) -> Growth:
    """How many more judgments are wanted of a comparison that has all it asked for; none where it is done."""
    if asked.most is not None:
        more = 0 if asked.sure else min(1, asked.most - asked.overlap)
    else:
        lacking = asked.overlap - asked.grown - asked.decided
        more = max(0, min(lacking, MOST_GROWTH - asked.grown))
    if asked.could_answer is not None:
        more = min(more, asked.could_answer)
    return Growth(more, more if asked.most is None else 0)


def is_unjudgeable(asked: Asked) -> bool:
    """Whether too few of those asked could say anything; of a comparison that grows no more."""
    return asked.decided == 0 or (asked.most is None and asked.decided < asked.overlap - asked.grown)


def agreement(preferences: Sequence[int]) -> float | None:
    """The share of pairs of judgments on the same side (A, tie, B); none for a single one."""
    n = len(preferences)
    if n < 2:
        return None
    on_side = [sum((p > 0) - (p < 0) == side for p in preferences) for side in (-1, 0, 1)]
    return sum(k * (k - 1) for k in on_side) / (n * (n - 1))


def why_review(asked: Asked, agreed: float | None, threshold: float, *, flagged: bool) -> Reason | None:
    """Why a comparison that is done goes to review; none: it is settled."""
    if is_unjudgeable(asked):
        return "unjudgeable"
    if agreed is not None and agreed < threshold:
        return "split"
    return "flagged" if flagged else None
