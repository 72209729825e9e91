"""Rao and Kupper's Bradley-Terry model with ties and covariates, fitted by maximum likelihood.

With strength difference eta and threshold nu >= 0:

    P(a wins) = sigmoid(eta - nu),  P(b wins) = sigmoid(-eta - nu),
    P(tie) = 1 - P(a wins) - P(b wins) = (exp(2 nu) - 1) P(a wins) P(b wins).

Source: Rao and Kupper 1967, Ties in Paired-Comparison Experiments: A Generalization of the Bradley-Terry Model, Journal
of the American Statistical Association 62; there theta = exp(nu). With nu = 0 it is the model of Bradley and Terry. The
log-likelihood is concave in (eta, nu), so Newton's method with halved steps finds its maximum.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS, HALVINGS = 100, 40
DECREMENT = 1e-16  # stop if a step promises a smaller gain in log-likelihood
ROUNDING = 1e-8  # rounding error of a log-likelihood
# Log-odds of one judgment. At 15, one in 3 million judgments goes the other way. Larger log-odds mean that something
# decides every outcome and there is no finite maximum.
UNBOUNDED = 15.0


class Fit(NamedTuple):
    """The maximum of the likelihood over N judgments, with K coefficients and P = K + 1 parameters (K without ties).

    Attributes:
        coefficients: (K,), in log-odds.
        nu: the threshold; 0 without ties.
        information: (P, P) minus the second derivatives of the log-likelihood, by the coefficients and then nu.
        scores: (N, P) derivatives of each judgment's log-likelihood.
    """

    coefficients: Floats
    nu: float
    information: Floats
    scores: Floats


def sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))


def win_rate(eta: Floats | float, nu: float) -> Floats:
    """Return P(a wins) + P(tie) / 2: the share of comparisons that a wins if a tie counts half."""
    at = np.asarray(eta, dtype=np.float64)
    return (sigmoid(at - nu) + sigmoid(at + nu)) / 2


def win_rate_slopes(eta: float, nu: float) -> tuple[float, float]:
    """Return the derivatives of `win_rate` by eta and by nu."""
    low, high = (float(sigmoid(np.array(x))) for x in (eta - nu, eta + nu))
    low, high = low * (1 - low), high * (1 - high)
    return (low + high) / 2, (high - low) / 2


def log_likelihood(design: Floats, outcome: NDArray[np.int64], coefficients: Floats, nu: float) -> float:
    """Return the log-likelihood of N outcomes.

    Args:
        design: (N, K) covariates of a minus those of b.
        outcome: (N,) 1 if a won, -1 if b won, 0 for a tie.
    """
    eta = design @ coefficients
    # The likelihood of a tie has the factors of both wins and one additional factor.
    found = -np.logaddexp(0.0, nu - eta)[outcome >= 0].sum() - np.logaddexp(0.0, nu + eta)[outcome <= 0].sum()
    ties = int((outcome == 0).sum())
    return float(found + (ties * np.log(np.expm1(2 * nu)) if ties else 0.0))


def fit(design: Floats, outcome: NDArray[np.int64]) -> Fit | None:
    """Return the unpenalised maximum likelihood estimate; None if no finite one exists.

    Args:
        design, outcome: see `log_likelihood`. The columns are linearly independent.
    """
    ties = outcome == 0
    if ties.all():
        return None
    has_ties = bool(ties.any())
    k = design.shape[1]
    # For equal strengths, P(tie) = tanh(nu / 2).
    at = np.append(np.zeros(k), 2 * np.arctanh(ties.mean()) if has_ties else 0.0)
    value = log_likelihood(design, outcome, at[:k], float(at[k]))
    for _ in range(STEPS):
        scores, information = _derivatives(design, outcome, at[:k], float(at[k]))
        gradient = scores.sum(axis=0)
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return None
        if np.abs(design @ at[:k]).max() > UNBOUNDED:
            return None
        if gradient @ step / 2 < DECREMENT:
            return Fit(at[:k], float(at[k]), information, scores)
        for halving in range(HALVINGS):
            tried = at.copy()
            tried[: len(step)] += step / 2**halving
            if has_ties and tried[k] <= 0:
                continue
            found = log_likelihood(design, outcome, tried[:k], float(tried[k]))
            if found >= value - ROUNDING:
                break
        else:
            return None
        at, value = tried, found
    return None


def _derivatives(design: Floats, outcome: NDArray[np.int64], coefficients: Floats, nu: float) -> tuple[Floats, Floats]:
    """Return scores (N, P) and information (P, P). Without ties, nu is not a parameter."""
    eta = design @ coefficients
    a, b = (outcome >= 0).astype(np.float64), (outcome <= 0).astype(np.float64)
    # log sigmoid(x) has the derivatives 1 - sigmoid(x) and -sigmoid(x) (1 - sigmoid(x)).
    first, second = sigmoid(eta - nu), sigmoid(-eta - nu)
    by_a, by_b = a * (1 - first), b * (1 - second)
    by_eta = by_a - by_b
    bend_a, bend_b = by_a * first, by_b * second
    scores = design * by_eta[:, None]
    information = design.T @ (design * (bend_a + bend_b)[:, None])
    ties = outcome == 0
    if not ties.any():
        return scores, information
    own = 2 / -np.expm1(-2 * nu)  # derivative of log(exp(2 nu) - 1)
    by_nu = ties * own - by_a - by_b
    across = design.T @ (bend_b - bend_a)
    corner = bend_a.sum() + bend_b.sum() + ties.sum() * (own * own - 2 * own)
    scores = np.column_stack([scores, by_nu])
    return scores, np.block([[information, across[:, None]], [across[None, :], np.array([[corner]])]])
