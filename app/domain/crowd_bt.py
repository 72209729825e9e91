"""Crowd-BT: joint estimates of responses' scores and labelers' reliabilities from all judgments.

Chen, Bennett, Collins-Thompson and Horvitz, Pairwise Ranking Aggregation in a Crowdsourced Setting, WSDM 2013. With d
the difference of two responses' Bradley-Terry scores, labeler k prefers B with probability

    eta_k s(d) + (1 - eta_k) s(-d).

If responses occur in several comparisons (pairs of a ranking, samples compared with several others), judgments on one
pair inform the others: `by_others`. `app.domain.consensus` uses only this result, with a limit on its weight.

The paper leaves ties out; here they follow Davidson (1970). Labeler k says tie with probability
nu_k / (exp(d/2) + exp(-d/2) + nu_k), so a tie carries less information if the labeler often says tie. Scores have a
normal prior, and labelers are pooled with the crowd, as in `app.domain.reliability`.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain.pooling import Floats, pooled, sums

# Prior variance of a score. Two thirds of the differences then lie within 2 (a preference of 88%), and a single vote
# for B gives p_b = 0.74. With a smaller variance, the fit mistakes labelers' errors for close calls.
SCORE_VARIANCE = 2.0
# Weight of the crowd in a labeler's own parameters, in answers.
PRIOR_ANSWERS = 10.0

Number = TypeVar("Number", float, Floats)


class Habits(NamedTuple, Generic[Number]):
    """A labeler's parameters; floats, or arrays (L,) for several labelers.

    Attributes:
        eta: probability of preferring the better response.
        nu: tendency to say tie.
    """

    eta: Number
    nu: Number


UNFITTED = Habits(0.85, 0.2)


class CrowdBT(NamedTuple):
    """A fit to C comparisons, I items (responses) and L labelers.

    Attributes:
        p_b: (C,) probability that a labeler without errors prefers B, a tie counting half.
        p_tie: (C,) probability that a labeler without errors says tie.
        scores: (I,) the items' scores.
        habits: the labelers' habits.
        crowd: an average labeler's habits.
        iterations: number of EM iterations.
        converged: whether the last iteration moved no difference by more than the tolerance.
    """

    p_b: Floats
    p_tie: Floats
    scores: Floats
    habits: Habits[Floats]
    crowd: Habits[float]
    iterations: int
    converged: bool


def fit(
    comparison: NDArray[np.int64],
    labeler: NDArray[np.int64],
    side: NDArray[np.int64],
    items: NDArray[np.int64],
    *,
    labelers: int,
    max_iterations: int = 300,
    tolerance: float = 1e-3,
) -> CrowdBT:
    """Fit the model by EM, with labelers' errors as latent variables; deterministic.

    Each iteration takes a damped Newton step for the scores.

    Args:
        comparison, labeler, side: (J,) as in `app.domain.reliability.fit`.
        items: (C, 2) indices, from 0 without gaps, of each comparison's A and B.
    """
    n_comparisons, n_items = len(items), int(items.max(initial=-1)) + 1
    a, b = items.T
    sided = (side != 0).astype(float)
    ties_of = sums(labeler, 1 - sided, labelers)
    sided_of = sums(labeler, sided, labelers)
    eta, mean_eta = np.full(labelers, UNFITTED.eta), UNFITTED.eta
    # Initially, equal responses tie as often as all responses did: nu / (2 + nu).
    crowd_nu = float(2 * ties_of.sum() / max(sided_of.sum(), 1.0))
    nu = np.full(labelers, crowd_nu)
    scores, d = np.zeros(n_items), np.zeros(n_comparisons)
    iteration, moved = 0, np.inf
    while moved > tolerance and iteration < max_iterations:
        iteration += 1
        # E step: which votes are errors. M step: labelers' parameters.
        right = meant(side, d[comparison], eta[labeler]) * sided
        right_of = sums(labeler, right, labelers)
        if sided.any():
            mean_eta = float(right_of.sum() / sided_of.sum())
        eta, _ = pooled(right_of, sided_of, mean_eta, PRIOR_ANSWERS)
        cosh = np.cosh(d / 2)[comparison]
        if crowd_nu:
            # Iterate nu_k = ties / sum of 1 / (exp(d/2) + exp(-d/2) + nu_k) (Hunter 2004), pooled with the crowd's.
            room = sums(labeler, 1 / (2 * cosh + nu[labeler]), labelers)
            crowd_nu = float(ties_of.sum() / (1 / (2 * cosh + crowd_nu)).sum())
            nu = (ties_of + PRIOR_ANSWERS) / (room + PRIOR_ANSWERS / crowd_nu)
        # M step: scores. An item's slope and curvature are sums over its comparisons.
        slope, bend = derivatives(comparison, side, d, eta[labeler], nu[labeler])
        gradient = sums(b, slope, n_items) - sums(a, slope, n_items) - scores / SCORE_VARIANCE
        # A comparison's curvature [[h, -h], [-h, h]] is at most twice its diagonal, so this step does not overshoot.
        curvature = 2 * (sums(b, bend, n_items) + sums(a, bend, n_items)) + 1 / SCORE_VARIANCE
        scores = scores + np.clip(gradient / curvature, -1, 1)
        before, d = d, scores[b] - scores[a]
        moved = float(np.abs(d - before).max(initial=0.0))
    p_b, p_tie = outcomes(d, crowd_nu)
    crowd = Habits(mean_eta, crowd_nu)
    return CrowdBT(p_b, p_tie, scores, Habits(eta, nu), crowd, iteration, moved <= tolerance)


def by_others(
    found: CrowdBT,
    comparison: NDArray[np.int64],
    labeler: NDArray[np.int64],
    side: NDArray[np.int64],
    items: NDArray[np.int64],
) -> Floats:
    """Return B's score minus A's (C,) according to all other comparisons, to combine with a comparison's own votes.

    It is one Newton step from the fit, without the comparison and with the other responses' scores fixed. It is 0 if
    both responses are in no other comparison.

    Args:
        comparison, labeler, side, items: the arguments of `fit`.
    """
    a, b = items.T
    n_items = len(found.scores)
    d = found.scores[b] - found.scores[a]
    slope, bend = derivatives(comparison, side, d, found.habits.eta[labeler], found.habits.nu[labeler])
    curvature = sums(a, bend, n_items) + sums(b, bend, n_items) + 1 / SCORE_VARIANCE
    return d - slope * (1 / (curvature[a] - bend) + 1 / (curvature[b] - bend))


def meant(side: NDArray[np.int64], d: Floats, eta: Floats) -> Floats:
    """Return the probability (J,) that a vote for a side is not an error of its labeler."""
    agree = 1 / (1 + np.exp(-d * side))
    return eta * agree / (eta * agree + (1 - eta) * (1 - agree))


def derivatives(
    comparison: NDArray[np.int64], side: NDArray[np.int64], d: Floats, eta: Floats, nu: Floats
) -> tuple[Floats, Floats]:
    """Return the first and the negated second derivative (C,) of the expected log-likelihood by the differences d (C,).

    Args:
        eta, nu: (J,) habits of each vote's labeler.
    """
    at = d[comparison]
    cosh = np.cosh(at / 2)
    total = 2 * cosh + nu
    first = side * (meant(side, at, eta) - 0.5) - np.sinh(at / 2) / total
    second = (1 + nu * cosh / 2) / (total * total)
    return sums(comparison, first, len(d)), sums(comparison, second, len(d))


def outcomes(d: Floats, nu: float) -> tuple[Floats, Floats]:
    """Return Davidson's (p_b, p_tie) for differences d; a tie counts half for each side in p_b."""
    up, down = np.exp(d / 2), np.exp(-d / 2)
    total = up + down + nu
    return (up + nu / 2) / total, nu / total
