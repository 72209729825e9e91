"""What the labelers of a comparison say together, and who won by it: the one rule for training, export and pages.

Four methods, chosen by project. All give probabilities that never reach certainty, and mirrored judgments give mirrored
probabilities. A reviewer's verdict stands in place of the judgments under every method.
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
# A reviewer who saw all judgments and rationales counts as this many labelers of one mind (p = 0.9).
VERDICT_VOTES = 4
# What Crowd-BT's scores, learned from other comparisons, count at most, in votes: less than one, so that they decide
# between sides that got alike, and never against more votes of labelers alike. What it is worth: docs/labeling.md.
SCORE_VOTES = 0.5
DIGITS = 6
# Probabilities are stored with DIGITS digits: what differs by less than half of the last one is equal.
EQUAL = 5e-7


class Consensus(NamedTuple):
    """What training reads of a comparison; floats, or in `decide` arrays (C,).

    preference: strength towards B, in steps of the rubric: the mean of what was said; for the methods that weigh
        labelers, how far the posterior leans, see `lean`. 0 where nobody won, or where the mean is for the other side.
    p_b: probability that B is better, a tie counting half. p_tie: probability of a tie.
    weight: in the loss. 1 for all: how sure the labelers are is already in p_b.
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
        """To what is stored: so the same judgments give the same snapshot on every machine. Not to certainty."""
        p_b = min(max(self.p_b, 10.0**-DIGITS), 1 - 10.0**-DIGITS)
        return Consensus(*(round(value, DIGITS) for value in self._replace(p_b=p_b)))


class Decisions(NamedTuple):
    """`Consensus` of C comparisons, arrays (C,)."""

    preference: Floats
    p_b: Floats
    p_tie: Floats


class Crowd(NamedTuple):
    """What the last fit says of an average labeler. ties: whether anybody ever said tie; tie: the log-odds of one
    before anyone has answered."""

    weights: Weights = reliability.UNFITTED
    ties: bool = True
    tie: float = 0.0


class Votes(NamedTuple):
    """J live judgments that say a preference, on C comparisons.

    Attributes:
        comparison: (J,) index of the comparison, below C.
        preference: (J,) towards B.
        strengths: (C,) steps each way of the rubric's scale, 1 to 4.
        weights: (J, 2) the labeler's `Weights`; the crowd's where not known.
    """

    comparison: NDArray[np.int64]
    preference: NDArray[np.int64]
    strengths: NDArray[np.int64]
    weights: Floats


def side(preference: float) -> int:
    """-1 for A, 0 for a tie, 1 for B."""
    return (preference > 0) - (preference < 0)


def winner(p_b: float, p_tie: float) -> int:
    """Who won: -1 for A, 0 for a tie, 1 for B.

    The likeliest of the three outcomes, so nobody wins where a tie is likelier than either side, or where both sides
    are equally likely. How strongly people said it plays no part. `app.models.comparison.WINNER` says the same in SQL.

    Args:
        p_b: probability that B is better, a tie counting half. p_tie: probability of a tie.
    """
    return 0 if _nobody(p_b - 0.5, p_tie) else side(p_b - 0.5)


def winners(p_b: Floats, p_tie: Floats) -> NDArray[np.int64]:
    """`winner` of C comparisons: (C,)."""
    return np.where(_nobody(p_b - 0.5, p_tie), 0, np.sign(p_b - 0.5)).astype(np.int64)


def _nobody(lean: Any, p_tie: Any) -> Any:
    """Whether neither side is the likeliest outcome, of p_b - 1/2 and p_tie: numbers, or arrays of them."""
    # The likelier side has 1/2 + |lean| - p_tie / 2.
    return (abs(lean) < EQUAL) | (1.5 * p_tie - 0.5 - abs(lean) > EQUAL)


def stored(preference: float | None, p_b: float | None, p_tie: float | None) -> Consensus | None:
    """The consensus that a comparison's columns hold; none before anything was fitted."""
    if preference is None or p_b is None or p_tie is None:
        return None
    return Consensus(preference, p_b, p_tie)


def who_won(preference: float | None, p_b: float | None, p_tie: float | None) -> int | None:
    """Who won by a comparison's columns: see `winner`. None where nobody has said anything; by the mean strength where
    nothing was fitted."""
    if p_b is not None:
        return winner(p_b, p_tie or 0.0)
    return None if preference is None else side(preference)


def decisions(preference: Floats, p_b: Floats, p_tie: Floats) -> Decisions:
    """Decisions whose strength never speaks against who won."""
    return Decisions(np.where(np.sign(preference) == winners(p_b, p_tie), preference, 0.0), p_b, p_tie)


def consensus(
    preferences: Sequence[int], verdict_: int | None = None, stored_: Consensus | None = None
) -> Consensus | None:
    """What stands of a comparison: the verdict, else what is stored, else (nothing is yet) what the majority says.

    Returns:
        None when there is neither a verdict nor a judgment, whatever is stored of judgments that are no more.
    """
    if verdict_ is not None:
        return verdict(verdict_)
    if not preferences:
        return None
    return stored_ or majority(preferences).rounded()


def verdict(preference: int) -> Consensus:
    """A reviewer's."""
    return majority([preference] * VERDICT_VOTES)


def majority(preferences: Sequence[int]) -> Consensus:
    """The consensus of one comparison by majority, of one judgment or more."""
    votes = Votes(np.zeros(len(preferences), np.int64), np.array(preferences), np.ones(1, np.int64), np.empty(0))
    found = decide("majority", votes, Crowd())
    return Consensus(float(found.preference[0]), float(found.p_b[0]), float(found.p_tie[0]))


def decide(method: Method, votes: Votes, crowd: Crowd, difference: Floats | None = None) -> Decisions:
    """The consensus of comparisons that each have one vote or more; costs O(votes).

    Labelers are weighed as at the last fit over all judgments (`app.domain.reliability`).

    - majority: p_b = (n_B + n_tie / 2 + 1/2) / (n + 1), the posterior mean of the share of people who prefer B, ties
      counting half for each side; p_tie = n_tie / (n + 1).
    - strength_weighted: the same, a vote for a side counting in proportion to its strength, 1 for the scale's mean
      step, and a tie 1: of three steps "slightly better" counts 1/2, "much better" 3/2.
    - dawid_skene: Bayes' rule over A, tie and B.
    - crowd_bt: the same, where before anyone has answered B is likelier than A by the difference of their scores in all
      other comparisons, up to `SCORE_VOTES`. Alone, the scores overturned four of five votes: they take labelers of
      few answers for right, and know no ties of one pair.

    Args:
        difference: (C,) of the scores, for crowd_bt: `app.domain.crowd_bt.by_others`; none: nothing is known of other
            comparisons.
    """
    if method == "majority":
        return _smoothed(votes, np.ones(len(votes.preference)))
    if method == "strength_weighted":
        steps = 2 * np.abs(votes.preference) / (votes.strengths[votes.comparison] + 1)
        return _smoothed(votes, np.where(votes.preference == 0, 1.0, steps))
    p_b, p_tie = _dawid_skene(votes, crowd, difference if method == "crowd_bt" else None)
    return decisions(lean(votes, p_b), p_b, p_tie)


def lean(votes: Votes, p_b: Floats) -> Floats:
    """(C,) how far the posterior leans to a side, in steps: (2 p_b - 1) times the mean strength of those who said that
    side, or of all who said one."""
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
