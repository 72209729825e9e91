"""Labelers' reliability and the consensus: Dawid and Skene's model for preferences, with pooling.

Every comparison has a latent truth: A is better, a tie, or B is better. Each labeler answers according to their own
confusion matrix (Dawid and Skene 1979). Unrestricted matrices need many answers from every labeler: if most labelers
have given few, the plain model is worse than the majority. Therefore:

- A matrix has two parameters (Hovy, Berg-Kirkpatrick, Vaswani and Hovy, Learning Whom to Trust with MACE, NAACL 2013).
  A labeler knows the truth and says it, or answers by habit: a tie with the labeler's own probability, otherwise A or B
  with equal probability, because it is random which response is A.
- Both parameters are pooled with the crowd's, which weighs as much as `PRIOR_ANSWERS` answers. The weight of a vote is
  pooled too.
- The prior of the outcomes is uniform, unless ties are clearly common or rare (`tie_odds`). With a learned prior, the
  fit would explain ties away as errors.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.pooling import Floats, logit_interval, pooled, sums

UNKNOWN = 2  # in `known`: no truth is given
# Weight of the crowd in a labeler's own parameters (in answers), and in the weight of the labeler's votes (as a share).
# On the topics of UKPConvArg1, 4 to 12 answers and shares of 0.1 to 0.5 do equally well; with less pooling, some topics
# are worse than the majority. The cost: among labelers with thousands of answers, the best and the worst are moved
# towards the crowd by up to 0.06.
PRIOR_ANSWERS = 6.0
POOLED_WEIGHT = 0.3
EVEN = 1 / 3  # share of ties by habit if nothing is known: A, tie and B are equally probable
# People avoid ties. So the prior share of ties may be up to this factor times the share that most labelers call, but at
# most a third. On UKPConvArg1, majorities call ties a tenth to a third of the time and even odds do best; factors from
# 4 to 6 make no difference there.
AVOIDED = 4.0


class Weights(NamedTuple):
    """Log-odds that a labeler's vote adds to its outcome: of a vote for a side, and of a vote for a tie."""

    side: float
    tie: float


# Weights of an unknown labeler: one vote for B gives p_b = 3/4, as with the majority.
UNFITTED = Weights(float(np.log(4)), float(np.log(4)))


class DawidSkene(NamedTuple):
    """A fit to C comparisons and L labelers.

    Attributes:
        p_b: (C,) posterior probability that B is better, a tie counting half.
        p_tie: (C,) posterior probability of a tie; 0 if nobody ever said tie.
        knows: (L,) probability of knowing the truth.
        habit: (L,) share of ties among answers without knowing the truth.
        reliability: (L,) probability of saying the truth.
        low, high: (L,) 95% interval of the reliability.
        weights: (L, 2) `Weights` of each labeler.
        crowd: weights of an average labeler.
        tie: log-odds of a tie against a side before anyone has answered.
        ties: whether a tie was a possible outcome.
        iterations: number of EM iterations.
        converged: whether the last iteration moved no posterior by more than the tolerance.
    """

    p_b: Floats
    p_tie: Floats
    knows: Floats
    habit: Floats
    reliability: Floats
    low: Floats
    high: Floats
    weights: Floats
    crowd: Weights
    tie: float
    ties: bool
    iterations: int
    converged: bool

    @property
    def confusion(self) -> Floats:
        """(L, truth, answer), both in the order A, tie, B: probability of the answer given the truth."""
        by_habit = (1 - self.knows)[:, None] * np.stack([(1 - self.habit) / 2, self.habit, (1 - self.habit) / 2], 1)
        return by_habit[:, None, :] + self.knows[:, None, None] * np.eye(3)


def fit(
    comparison: NDArray[np.int64],
    labeler: NDArray[np.int64],
    side: NDArray[np.int64],
    *,
    comparisons: int,
    labelers: int,
    known: NDArray[np.int64] | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> DawidSkene:
    """Fit the model by EM, starting from average labelers; deterministic.

    An iteration reads the J judgments about ten times.

    Args:
        comparison, labeler: (J,) indices of comparison and labeler, below `comparisons` and `labelers`.
        side: (J,) -1 for A, 0 for a tie, 1 for B.
        known: (C,) known truths, coded like `side`, `UNKNOWN` elsewhere. Labelers are measured on them, but the result
            for these comparisons is still the labelers' consensus.
    """
    is_tie = side == 0
    ties = bool(is_tie.any() or (known is not None and (known == 0).any()))
    even = EVEN if ties else 0.0
    said = comparison * 3 + side + 1  # index of each judgment's comparison and outcome
    tie = tie_odds(sums(said, np.ones(len(said)), comparisons * 3).reshape(-1, 3)) if ties else 0.0
    answers = np.bincount(labeler, minlength=labelers).astype(float)
    knows, habit = np.full(labelers, 0.5), np.full(labelers, even)
    variance = np.zeros(labelers)
    posterior = np.zeros((comparisons, 3))
    iteration, moved = 0, np.inf
    while True:
        # E step: the truth of each comparison.
        weights, mean = _weights(knows, habit, ties, labeler, is_tie)
        votes = weights[labeler, is_tie.astype(np.int64)]
        before, posterior = posterior, softmax(sums(said, votes, comparisons * 3).reshape(-1, 3), tie, ties)
        moved = float(np.abs(posterior - before).max(initial=0.0)) if iteration else np.inf
        if moved <= tolerance or iteration == max_iterations:
            break
        iteration += 1
        # E step: the probability that each judgment was known, not habit. M step: both parameters.
        by_habit = np.where(is_tie, habit[labeler], (1 - habit[labeler]) / 2)
        own = knows[labeler]
        right = _clamped(posterior, known).reshape(-1)[said]
        knew = right * own / (own + (1 - own) * by_habit)
        known_of = sums(labeler, knew, labelers)
        knows, variance = pooled(known_of, answers, known_of.sum() / max(answers.sum(), 1), PRIOR_ANSWERS)
        if ties:
            ties_of = sums(labeler, (1 - knew) * is_tie, labelers)
            habit, _ = pooled(ties_of, answers - known_of, even, PRIOR_ANSWERS)
    p_tie = posterior[:, 1]
    share = float(p_tie.mean()) if comparisons else 0.0
    by_chance = (1 - share) * (1 - habit) / 2 + share * habit
    low, high = (by_chance + (1 - by_chance) * bound for bound in logit_interval(knows, variance))
    reliability = by_chance + (1 - by_chance) * knows
    p_b = posterior[:, 2] + p_tie / 2
    crowd = Weights(mean, mean)
    return DawidSkene(
        p_b, p_tie, knows, habit, reliability, low, high, weights, crowd, tie, ties, iteration, moved <= tolerance
    )


def _weights(
    knows: Floats, habit: Floats, ties: bool, labeler: NDArray[np.int64], is_tie: NDArray[np.bool_]
) -> tuple[Floats, float]:
    """Return the log-odds (L, 2) of a vote for a side and for a tie, and the mean over all votes.

    The log-odds are ln P(answer | it is true) / P(answer | it is not), pooled with this mean.
    """
    odds = knows / (1 - knows)
    side = 2 * odds / (1 - habit)
    # If nobody has said tie yet, the first tie weighs as much as a vote for a side.
    own = np.log1p(np.stack([side, odds / habit if ties else side], axis=1))
    mean = float(own[labeler, is_tie.astype(np.int64)].mean()) if len(labeler) else UNFITTED.side
    return (1 - POOLED_WEIGHT) * own + POOLED_WEIGHT * mean, mean


def tie_odds(counts: Floats) -> float:
    """Return the log-odds of a tie against a side from votes (C, 3) for A, tie and B; a shared first place is split."""
    top = (counts == counts.max(axis=1, keepdims=True)) & (counts > 0)
    called = (top[:, 1] / np.maximum(top.sum(axis=1), 1)).sum()
    share = float((called + 1) / (counts.any(axis=1).sum() + 3))
    share = max(share, min(EVEN, AVOIDED * share))
    return float(np.log(2 * share / (1 - share)))


def softmax(votes: Floats, tie: float, ties: bool | NDArray[np.bool_]) -> Floats:
    """Return probabilities (C, 3) of A, tie and B from the votes' summed log-odds (C, 3).

    Args:
        tie: see `tie_odds`.
        ties: whether a tie is possible, for all comparisons or for each (C,).
    """
    logs = votes + np.array([0.0, tie, 0.0])
    logs[~np.broadcast_to(ties, len(logs)), 1] = -np.inf
    likely = np.exp(logs - logs.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)


def _clamped(posterior: Floats, known: NDArray[np.int64] | None) -> Floats:
    if known is None:
        return posterior
    given = known != UNKNOWN
    clamped = posterior.copy()
    clamped[given] = np.eye(3)[known[given] + 1]
    return clamped
