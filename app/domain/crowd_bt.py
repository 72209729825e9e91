"""Crowd-BT: scores of responses and reliabilities of labelers, from all judgments at once.

Chen, Bennett, Collins-Thompson and Horvitz, Pairwise Ranking Aggregation in a Crowdsourced Setting, WSDM 2013. With d
the difference of two responses' Bradley-Terry scores, labeler k prefers B with probability

    eta_k s(d) + (1 - eta_k) s(-d).

Where responses recur (a ranking's pairs, samples compared with several others) what is said of one pair tells of the
others: `by_others`. `app.domain.consensus` reads only that, and bounds what it counts.
Ties, which the paper leaves out, are Davidson's (1970): k says tie with probability
nu_k / (exp(d/2) + exp(-d/2) + nu_k), so that one who often calls a tie says less by it. Scores are normal a priori and
labelers are pooled with the crowd, as in `app.domain.reliability`.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain.pooling import Floats, pooled, sums

# Prior variance of a score. Two thirds of the differences then lie within 2 (a preference of 88%), and a lone vote for
# B makes p_b 0.74. With a smaller variance the fit mistakes labelers' errors for close calls.
SCORE_VARIANCE = 2.0
# What the crowd weighs in a labeler's own parameters, in answers.
PRIOR_ANSWERS = 10.0

Number = TypeVar("Number", float, Floats)


class Habits(NamedTuple, Generic[Number]):
    """How a labeler answers; floats, or arrays (L,) of many.

    eta: probability to prefer what is better. nu: inclination to ties.
    """

    eta: Number
    nu: Number


UNFITTED = Habits(0.85, 0.2)


class CrowdBT(NamedTuple):
    """A fit to C comparisons, I items (responses) and L labelers.

    Attributes:
        p_b: (C,) probability that somebody who never errs prefers B, a tie counting half.
        p_tie: (C,) that such a one calls it a tie.
        scores: (I,).
        habits: of the labelers.
        crowd: an average labeler's habits.
        iterations: of EM; converged: no difference still moved by more than the tolerance.
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
    """Fits by EM over who erred, with a damped Newton step for the scores in each; deterministic.

    Args:
        comparison, labeler, side: (J,) as of `app.domain.reliability.fit`.
        items: (C, 2) indices, from 0 without gaps, of each comparison's A and B.
    """
    n_comparisons, n_items = len(items), int(items.max(initial=-1)) + 1
    a, b = items.T
    sided = (side != 0).astype(float)
    ties_of = sums(labeler, 1 - sided, labelers)
    sided_of = sums(labeler, sided, labelers)
    eta, mean_eta = np.full(labelers, UNFITTED.eta), UNFITTED.eta
    # Equal responses tie at first as often as all did: nu / (2 + nu).
    crowd_nu = float(2 * ties_of.sum() / max(sided_of.sum(), 1.0))
    nu = np.full(labelers, crowd_nu)
    scores, d = np.zeros(n_items), np.zeros(n_comparisons)
    iteration, moved = 0, np.inf
    while moved > tolerance and iteration < max_iterations:
        iteration += 1
        # E: who erred. M: labelers.
        right = meant(side, d[comparison], eta[labeler]) * sided
        right_of = sums(labeler, right, labelers)
        if sided.any():
            mean_eta = float(right_of.sum() / sided_of.sum())
        eta, _ = pooled(right_of, sided_of, mean_eta, PRIOR_ANSWERS)
        cosh = np.cosh(d / 2)[comparison]
        if crowd_nu:
            # nu_k = ties / sum of 1 / (exp(d/2) + exp(-d/2) + nu_k) by iteration (Hunter 2004), the crowd's on top.
            room = sums(labeler, 1 / (2 * cosh + nu[labeler]), labelers)
            crowd_nu = float(ties_of.sum() / (1 / (2 * cosh + crowd_nu)).sum())
            nu = (ties_of + PRIOR_ANSWERS) / (room + PRIOR_ANSWERS / crowd_nu)
        # M: scores; slope and curvature by comparison make those by item.
        slope, bend = derivatives(comparison, side, d, eta[labeler], nu[labeler])
        gradient = sums(b, slope, n_items) - sums(a, slope, n_items) - scores / SCORE_VARIANCE
        # A comparison's curvature is [[h, -h], [-h, h]], at most twice its diagonal: the step does not go too far.
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
    """(C,) B's score less A's, as all other comparisons alone have it: what a comparison's own votes are put beside.

    One Newton step from the fit, without the comparison and with the other responses' scores as they are: 0 for two
    responses that stand in no other.

    Args:
        comparison, labeler, side, items: what was fitted.
    """
    a, b = items.T
    n_items = len(found.scores)
    d = found.scores[b] - found.scores[a]
    slope, bend = derivatives(comparison, side, d, found.habits.eta[labeler], found.habits.nu[labeler])
    curvature = sums(a, bend, n_items) + sums(b, bend, n_items) + 1 / SCORE_VARIANCE
    return d - slope * (1 / (curvature[a] - bend) + 1 / (curvature[b] - bend))


def meant(side: NDArray[np.int64], d: Floats, eta: Floats) -> Floats:
    """(J,) how probably a vote for a side is for the response that its labeler holds better, and not an error."""
    agree = 1 / (1 + np.exp(-d * side))
    return eta * agree / (eta * agree + (1 - eta) * (1 - agree))


def derivatives(
    comparison: NDArray[np.int64], side: NDArray[np.int64], d: Floats, eta: Floats, nu: Floats
) -> tuple[Floats, Floats]:
    """First and negated second derivative (C,) by the differences d (C,) of the expected log-likelihood of J votes.

    Args:
        eta, nu: (J,) habits of the labeler of each vote.
    """
    at = d[comparison]
    cosh = np.cosh(at / 2)
    total = 2 * cosh + nu
    first = side * (meant(side, at, eta) - 0.5) - np.sinh(at / 2) / total
    second = (1 + nu * cosh / 2) / (total * total)
    return sums(comparison, first, len(d)), sums(comparison, second, len(d))


def outcomes(d: Floats, nu: float) -> tuple[Floats, Floats]:
    """(p_b, p_tie) of a difference: Davidson's probabilities, a tie counting half for each side in p_b."""
    up, down = np.exp(d / 2), np.exp(-d / 2)
    total = up + down + nu
    return (up + nu / 2) / total, nu / total
