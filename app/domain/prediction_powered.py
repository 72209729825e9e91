"""A win rate by people and an AI judge together: prediction-powered inference (PPI++).

People judged n prompts, and the judge these and N more. The judge's mean over the N prompts is corrected by how far
judge and people differ on the n, so that a judge who is wrong costs precision and never adds a bias (Angelopoulos,
Bates, Fannjiang, Jordan and Zrnic 2023). The weight of the judge, lambda, is the one with the least variance, and 0 for
a judge who knows nothing (Angelopoulos, Duchi and Zrnic 2023, "PPI++", section 6):

    estimate = mean(Y) + lambda * (mean(F over N) - mean(f over n))
    variance = var(Y - lambda f) / n + lambda^2 var(F) / N
    lambda   = cov(Y, f) / ((1 + n / N) var(f over all)), kept within [0, 1]

It holds if the prompts that people judged are a random sample of all. The interval is for one look.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from app.domain.proportions import Z_95

FEWEST = 20  # prompts of either kind: the interval is of the normal distribution


class Powered(NamedTuple):
    """The win rate with its 95% interval.

    Attributes:
        weight: lambda, how much the judge counts: 0 not at all, 1 as the plain prediction-powered estimate.
        people, judged: prompts that people judged, and those that only the judge did.
        alone: half the width of the interval of people's prompts alone, by the same formula.
        saved: so many more prompts people would have to judge for an interval as narrow.
    """

    value: float
    low: float
    high: float
    weight: float
    people: int
    judged: int
    alone: float
    saved: float


def powered(people: Sequence[float], judge: Sequence[float], judge_only: Sequence[float]) -> Powered | None:
    """Combines them; none for fewer than `FEWEST` prompts of either kind: a judge never stands alone.

    Args:
        people: (n,) people's value of each prompt, in [0, 1], 1 being for the new policy.
        judge: (n,) the judge's of the same prompts.
        judge_only: (N,) the judge's of prompts that people did not judge.
    """
    y, f, rest = (np.asarray(each, float) for each in (people, judge, judge_only))
    n, more = len(y), len(rest)
    if len(f) != n:
        raise ValueError("the judge has a value for each prompt that people judged")
    if n < FEWEST or more < FEWEST:
        return None
    spread = float(np.var(np.concatenate([f, rest]), ddof=1))
    covariance = float(np.cov(y, f, ddof=1)[0, 1])
    weight = min(max(covariance / ((1 + n / more) * spread), 0.0), 1.0) if spread > 0 else 0.0
    value = float(y.mean() + weight * (rest.mean() - f.mean()))
    variance = float(np.var(y - weight * f, ddof=1) / n + weight**2 * np.var(rest, ddof=1) / more)
    own = float(np.var(y, ddof=1))
    half = Z_95 * sqrt(variance)
    saved = max(0.0, own / variance - n) if variance > 0 else 0.0
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Powered(min(max(value, 0.0), 1.0), low, high, weight, n, more, Z_95 * sqrt(own / n), saved)
