"""Coefficients of annotator agreement beyond chance, from counts of values per unit.

A unit is a judged item (a comparison), a value is a possible answer (a side, or a preference). These coefficients do
not depend on who gave which answer (Cohen's kappa does: app.domain.kappa). So a unit is represented by its counts: how
many labelers gave each value. A million units have few distinct counts. Every coefficient is computed from weighted
sums over them (`Sums`), and the weights of all bootstrap replicates form one matrix: see app.domain.figures.

Arrays hold NaN for undefined coefficients; `app.domain.figures` converts it to None.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]


class Sums(NamedTuple):
    """Sums over units. n_uv of the m_u answers of unit u have value v. Leading dimensions (replicates) are free."""

    units: Floats  # (...) number of units with an answer
    shares: Floats  # (..., V) sum of n_uv / m_u over these units
    pairable: Floats  # (...) number of units with two or more answers; the following sums are over these
    agreeing: Floats  # (...) sum of sum_v n_uv (n_uv - 1) / (m_u (m_u - 1)), the share of a unit's pairs that are equal
    coincidences: Floats  # (..., V, V) sum of n_uv (n_uw - [v = w]) / (m_u - 1)


def terms(counts: ArrayLike) -> Floats:
    """Return each unit's contribution (U, T) to `Sums`, from the counts (U, V) of its answers."""
    n = np.asarray(counts, dtype=np.float64)  # products of counts must not overflow
    if n.ndim != 2:
        raise ValueError(f"Counts must be (units, values), not of shape {n.shape}.")
    m = n.sum(axis=1)
    answered, pairable = m > 0, m >= 2
    equal_pairs = (n * (n - 1)).sum(axis=1)
    coincidences = n[:, :, None] * (n[:, None, :] - np.eye(n.shape[1])) / np.where(pairable, m - 1, 1)[:, None, None]
    return np.column_stack(
        [
            answered,
            n / np.where(answered, m, 1)[:, None],
            pairable,
            equal_pairs / np.where(pairable, m * (m - 1), 1),
            (coincidences * pairable[:, None, None]).reshape(len(n), n.shape[1] ** 2),
        ]
    )


def summed(terms: Floats, times: ArrayLike | None = None) -> Sums:
    """Sum `terms` over units; times: (..., U) how often each unit counts, by default once."""
    return named(terms.sum(axis=0) if times is None else np.asarray(times, dtype=np.float64) @ terms)


def named(terms: Floats) -> Sums:
    """Split the columns of (..., T) `terms`, or of sums of them, into the fields of `Sums`."""
    values = int(np.sqrt(terms.shape[-1] - 3 + 0.25))  # T = 1 + V + 2 + V^2
    return Sums(
        units=terms[..., 0],
        shares=terms[..., 1 : 1 + values],
        pairable=terms[..., 1 + values],
        agreeing=terms[..., 2 + values],
        coincidences=terms[..., 3 + values :].reshape(*terms.shape[:-1], values, values),
    )


def percent_agreement(sums: Sums) -> Floats:
    """Return the share (...) of equal pairs of answers, averaged over units with a pair; NaN if there are none.

    It is the p_o of Fleiss' kappa. The mean is over units and not over all pairs: otherwise one unit with two hundred
    answers, such as a calibration item, would count as much as twenty thousand units with two.
    """
    return _ratio(sums.agreeing, sums.pairable)


def krippendorff_alpha(sums: Sums, values: ArrayLike, level: Level) -> Floats:
    """alpha = 1 - D_o / D_e (Krippendorff 2011, Computing Krippendorff's alpha-reliability).

    Args:
        values: (V,) the values, ascending; their size matters only for the interval level.
        level: the distance of two values. nominal: equal or not; ordinal: by the number of answers between them;
            interval: by their difference.

    Returns:
        (...) alpha, at most 1. NaN if it is undefined: no unit has two answers, or all pairable answers are the same
        (without variation there is no expected disagreement).
    """
    totals = sums.coincidences.sum(axis=-1)
    distances = _squared_distances(totals, np.asarray(values, dtype=float), level)
    observed = (sums.coincidences * distances).sum(axis=(-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * distances).sum(axis=(-2, -1))
    return 1 - _ratio(observed * (totals.sum(axis=-1) - 1), expected)


def fleiss_kappa(sums: Sums) -> Floats:
    """kappa = (p_o - p_e) / (1 - p_e) with p_e from the pooled shares of the values (Fleiss 1971).

    Generalised to varying numbers of labelers as in Gwet 2014, Handbook of Inter-Rater Reliability: p_o is the mean
    over units with two or more answers, and a value's share is the mean of its shares in all units with an answer.

    Returns:
        (...) kappa; NaN without a pair of answers or if all answers are the same.
    """
    chance = (_shares(sums) ** 2).sum(axis=-1)
    return _beyond_chance(percent_agreement(sums), chance)


def gwet_ac1(sums: Sums, categories: ArrayLike) -> Floats:
    """AC1: like Fleiss' kappa, but with p_e = sum_v p_v (1 - p_v) / (q - 1) (Gwet 2008).

    It stays meaningful if nearly all answers are the same, where kappa and alpha collapse.

    Args:
        categories: (...) or a number: q, the number of possible answers, at least two.

    Returns:
        (...) AC1; NaN without a pair of answers.
    """
    shares = _shares(sums)
    chance = (shares * (1 - shares)).sum(axis=-1) / (np.asarray(categories) - 1)
    return _beyond_chance(percent_agreement(sums), chance)


def _shares(sums: Sums) -> Floats:
    return _ratio(sums.shares, sums.units[..., None])


def _beyond_chance(observed: Floats, chance: Floats) -> Floats:
    return _ratio(observed - chance, 1 - chance)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below; NaN where below is zero."""
    return above / np.where(below == 0, np.nan, below)


def _squared_distances(totals: Floats, values: Floats, level: Level) -> Floats:
    """Return the squared distances (..., V, V) of all pairs of values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    # Ordinal: the number of answers between two values, with the ends counted half. That is the mid-ranks' distance.
    mid_ranks = np.cumsum(totals, axis=-1) - totals / 2
    return (mid_ranks[..., :, None] - mid_ranks[..., None, :]) ** 2
