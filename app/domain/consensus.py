"""The consensus of a comparison's labelers and its winner: the same rule for training, export and pages.

A project chooses one of four methods. With all of them, probabilities never reach certainty, and mirrored judgments
give mirrored probabilities. A reviewer's verdict replaces the judgments under every method.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain import reliability
from app.domain.pooling import Floats, sums
from app.domain.reliability import Weights

Method = Literal["majority", "strength_weighted", "dawid_skene", "crowd_bt"]

# Beta(1/2, 1/2), the Jeffreys prior: a lone vote gives 3/4, and no number of votes gives certainty.
PRIOR = 0.5
# A reviewer who saw all judgments and rationales counts as this many labelers who agree (p = 0.9).
VERDICT_VOTES = 4
# Maximum weight, in votes, of Crowd-BT's scores, which come from other comparisons. With less than one vote, they
# decide between sides with equal votes, but never against a majority of equally reliable labelers. Effect:
# docs/labeling.md.
SCORE_VOTES = 0.5
DIGITS = 6
# Probabilities are stored with DIGITS digits: a difference of less than half of the last digit counts as equal.
EQUAL = 5e-7


class Consensus(NamedTuple):
    """The consensus on a comparison, as training reads it.

    Attributes:
        preference: strength towards B, in steps of the rubric: the mean of the judgments, or for methods that weight
            labelers the posterior's lean (see `lean`). 0 without a winner, or if the mean favors the other side.
        p_b: probability that B is better, a tie counting half.
        p_tie: probability of a tie.
        weight: weight in the loss. It is always 1, because p_b already includes the labelers' uncertainty.
    """

    preference: float
    p_b: float
    p_tie: float
    weight: float = 1.0

    @property
    def winner(self) -> int:
        """-1 for A, 0 for a tie, 1 for B; see `winner`."""
        return winner(self.p_b, self.p_tie)

    @property
    def is_tie(self) -> bool:
        return self.winner == 0

    def rounded(self) -> "Consensus":
        """Round to the stored digits, so that the same judgments give the same snapshot on every machine.

        p_b is never rounded to 0 or 1.
        """
        p_b = min(max(self.p_b, 10.0**-DIGITS), 1 - 10.0**-DIGITS)
        return Consensus(*(round(value, DIGITS) for value in self._replace(p_b=p_b)))


class Decisions(NamedTuple):
    """`Consensus` of C comparisons, arrays (C,)."""

    preference: Floats
    p_b: Floats
    p_tie: Floats


class Crowd(NamedTuple):
    """An average labeler according to the last fit.

    Attributes:
        weights: log-odds that such a labeler's votes add.
        ties: whether anybody ever said tie.
        tie: log-odds of a tie against a side before anyone has answered.
    """

    weights: Weights = reliability.UNFITTED
    ties: bool = True
    tie: float = 0.0


class Votes(NamedTuple):
    """J live judgments that state a preference, on C comparisons.

    Attributes:
        comparison: (J,) index of the comparison, below C.
        preference: (J,) strength towards B.
        strengths: (C,) number of steps on each side of the rubric's scale, 1 to 4.
        weights: (J, 2) the labeler's `Weights`; the crowd's if they are unknown.
    """

    comparison: NDArray[np.int64]
    preference: NDArray[np.int64]
    strengths: NDArray[np.int64]
    weights: Floats


def side(preference: float) -> int:
    """Return the side of a preference: -1 for A, 0 for a tie, 1 for B."""
    return (preference > 0) - (preference < 0)


def winner(p_b: float, p_tie: float) -> int:
    """Return the winner: -1 for A, 0 for a tie, 1 for B.

    It is the most probable of the three outcomes. Nobody wins if a tie is more probable than either side, or if both
    sides are equally probable. The strength of the preferences does not matter. `app.models.comparison.WINNER` is the
    same rule in SQL.

    Args:
        p_b: probability that B is better, a tie counting half. p_tie: probability of a tie.
    """
    return 0 if _nobody(p_b - 0.5, p_tie) else side(p_b - 0.5)


def winners(p_b: Floats, p_tie: Floats) -> NDArray[np.int64]:
    """Return the `winner` of each of C comparisons, (C,)."""
    return np.where(_nobody(p_b - 0.5, p_tie), 0, np.sign(p_b - 0.5)).astype(np.int64)


def _nobody(lean: Any, p_tie: Any) -> Any:
    """Return whether neither side is the most probable outcome; lean is p_b - 1/2. Takes numbers or arrays."""
    # The more probable side has 1/2 + |lean| - p_tie / 2.
    return (abs(lean) < EQUAL) | (1.5 * p_tie - 0.5 - abs(lean) > EQUAL)


def stored(preference: float | None, p_b: float | None, p_tie: float | None) -> Consensus | None:
    """Return the consensus stored in a comparison's columns; None before the first fit."""
    if preference is None or p_b is None or p_tie is None:
        return None
    return Consensus(preference, p_b, p_tie)


def who_won(preference: float | None, p_b: float | None, p_tie: float | None) -> int | None:
    """Return the winner according to a comparison's columns, see `winner`.

    Before the first fit, the mean strength decides. None without judgments.
    """
    if p_b is not None:
        return winner(p_b, p_tie or 0.0)
    return None if preference is None else side(preference)


def decisions(preference: Floats, p_b: Floats, p_tie: Floats) -> Decisions:
    """Return decisions with the strength set to 0 where it contradicts the winner."""
    return Decisions(np.where(np.sign(preference) == winners(p_b, p_tie), preference, 0.0), p_b, p_tie)


def consensus(
    preferences: Sequence[int], verdict_: int | None = None, stored_: Consensus | None = None
) -> Consensus | None:
    """Return the current consensus: the verdict, else the stored consensus, else the majority.

    Returns:
        None if there is neither a verdict nor a judgment, even if a consensus of withdrawn judgments is stored.
    """
    if verdict_ is not None:
        return verdict(verdict_)
    if not preferences:
        return None
    return stored_ or majority(preferences).rounded()


def verdict(preference: int) -> Consensus:
    """Return the consensus of a reviewer's verdict."""
    return majority([preference] * VERDICT_VOTES)


def majority(preferences: Sequence[int]) -> Consensus:
    """Return the majority consensus of one comparison with one or more judgments."""
    votes = Votes(np.zeros(len(preferences), np.int64), np.array(preferences), np.ones(1, np.int64), np.empty(0))
    found = decide("majority", votes, Crowd())
    return Consensus(float(found.preference[0]), float(found.p_b[0]), float(found.p_tie[0]))


def decide(method: Method, votes: Votes, crowd: Crowd, difference: Floats | None = None) -> Decisions:
    """Return the consensus of comparisons with at least one vote each, in O(votes).

    Labelers have the weights of the last fit over all judgments (`app.domain.reliability`).

    - majority: p_b = (n_B + n_tie / 2 + 1/2) / (n + 1), the posterior mean of the share of people who prefer B, ties
      counting half for each side; p_tie = n_tie / (n + 1).
    - strength_weighted: the same, but a vote for a side counts in proportion to its strength, with 1 for the scale's
      mean step, and a tie counts 1. With three steps, "slightly better" counts 1/2 and "much better" 3/2.
    - dawid_skene: Bayes' rule over A, tie and B.
    - crowd_bt: like dawid_skene, with a prior for B against A: the difference of the responses' scores in all other
      comparisons, limited to `SCORE_VOTES`. Without the limit, the scores overturned four of five votes: they trust
      labelers with few answers too much, and they do not model ties of single pairs.

    Args:
        difference: (C,) difference of the scores, for crowd_bt: `app.domain.crowd_bt.by_others`. None if nothing is
            known from other comparisons.
    """
    if method == "majority":
        return _smoothed(votes, np.ones(len(votes.preference)))
    if method == "strength_weighted":
        steps = 2 * np.abs(votes.preference) / (votes.strengths[votes.comparison] + 1)
        return _smoothed(votes, np.where(votes.preference == 0, 1.0, steps))
    p_b, p_tie = _dawid_skene(votes, crowd, difference if method == "crowd_bt" else None)
    return decisions(lean(votes, p_b), p_b, p_tie)


def lean(votes: Votes, p_b: Floats) -> Floats:
    """Return the posterior's lean to a side in steps, (C,).

    It is (2 p_b - 1) times the mean strength of the votes for that side, or of all votes for a side if it has none.
    """
    n = len(votes.strengths)
    strength = np.abs(votes.preference).astype(float)

    def mean(mask: NDArray[np.bool_]) -> Floats:
        total = sums(votes.comparison, strength * mask, n)
        return total / np.maximum(sums(votes.comparison, mask, n), 1)

    towards = votes.preference * (p_b - 0.5)[votes.comparison] > 0
    with_side = mean(towards)
    return (2 * p_b - 1) * np.where(with_side > 0, with_side, mean(votes.preference != 0))


def _smoothed(votes: Votes, weight: Floats) -> Decisions:
    n = len(votes.strengths)
    sides = np.sign(votes.preference)
    total = sums(votes.comparison, weight, n) + 2 * PRIOR
    for_b = sums(votes.comparison, weight * (1 + sides) / 2, n) + PRIOR
    ties = sums(votes.comparison, weight * (sides == 0), n)
    preference = sums(votes.comparison, votes.preference, n) / np.maximum(np.bincount(votes.comparison, minlength=n), 1)
    return decisions(preference, for_b / total, ties / total)


def _dawid_skene(votes: Votes, crowd: Crowd, difference: Floats | None) -> tuple[Floats, Floats]:
    sides = np.sign(votes.preference)
    cell = votes.comparison * 3 + sides + 1
    adds = np.where(sides == 0, votes.weights[:, 1], votes.weights[:, 0])
    possible = crowd.ties | (sums(votes.comparison, sides == 0, len(votes.strengths)) > 0)
    said = sums(cell, adds, 3 * len(votes.strengths)).reshape(-1, 3)
    if difference is not None:
        most = SCORE_VOTES * crowd.weights.side
        said += np.outer(np.clip(difference, -most, most), [-0.5, 0.0, 0.5])
    posterior = reliability.softmax(said, crowd.tie, possible)
    return posterior[:, 2] + posterior[:, 1] / 2, posterior[:, 1]
