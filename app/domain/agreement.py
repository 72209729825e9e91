"""How far labelers agree: Krippendorff's alpha and percent agreement, from counts of values per unit.

A unit is what was judged (a comparison), a value what a judge may say (a side, or a preference). All functions read
`counts`, an integer array (units, values): how many judges gave unit u value v. Missing answers are simply not counted,
and who gave which answer does not matter to these coefficients, so a project of any size is one small array.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(counts: ArrayLike, values: ArrayLike, level: Level) -> float | None:
    """alpha = 1 - D_o / D_e (Krippendorff 2011, Computing Krippendorff's alpha-reliability).

    Args:
        counts: (U, V) answers by unit and value. Units with fewer than two answers pair with nothing and do not count.
        values: (V,) the values, ascending; numbers that mean something only for the interval level.
        level: how far two values are apart. nominal: the same or not; ordinal: by how many answers lie between them;
            interval: by their difference.

    Returns:
        alpha, at most 1; None where it is undefined: no unit has two answers, or all pairable answers are the same
        (no variation, so nothing could have disagreed).
    """
    pairable = _pairable(counts)
    if not len(pairable):
        return None
    answers = pairable.sum(axis=1)
    # Coincidences o_ck = sum over units of n_uc (n_uk - [c = k]) / (m_u - 1).
    weighted = pairable / (answers - 1)[:, None]
    coincidences = weighted.T @ pairable - np.diag(weighted.sum(axis=0))
    totals = pairable.sum(axis=0)
    distances = _squared_distances(totals, np.asarray(values, dtype=float), level)
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    if expected == 0:
        return None
    return float(1 - (coincidences * distances).sum() / expected)


def percent_agreement(counts: ArrayLike) -> float | None:
    """The share of pairs of answers to one unit that are equal, over the pairs of all units; None without a pair."""
    pairable = _pairable(counts)
    if not len(pairable):
        return None
    answers = pairable.sum(axis=1)
    return float((pairable * (pairable - 1)).sum() / (answers * (answers - 1)).sum())


def _pairable(counts: ArrayLike) -> NDArray[np.float64]:
    """The units with two or more answers, as floats: products of counts must not overflow."""
    counts_ = np.asarray(counts, dtype=np.float64)
    if counts_.ndim != 2:
        raise ValueError(f"Counts must be (units, values), not of shape {counts_.shape}.")
    return counts_[counts_.sum(axis=1) >= 2]


def _squared_distances(totals: NDArray[np.float64], values: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """(V, V) squared distance of every pair of values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    # Ordinal: the answers from c to k, the outer two counted half; that is the distance of the values' mid-ranks.
    mid_ranks = np.cumsum(totals) - totals / 2
    return (mid_ranks[:, None] - mid_ranks[None, :]) ** 2
