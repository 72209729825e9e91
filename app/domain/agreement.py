"""How far labelers agree beyond chance: coefficients from counts of values per unit.

A unit is what was judged (a comparison), a value what a labeler may say (a side, or a preference). Who gave which
answer does not matter to these coefficients (it does to Cohen's: app.domain.kappa), so a unit is its counts: how many
labelers gave each value. A million units have few distinct counts; every coefficient reads weighted sums over them
(`Sums`), and the weights of all replicates of a bootstrap are one matrix: see app.domain.figures.

Arrays hold NaN where a coefficient is undefined; `app.domain.figures` turns that into None.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]


class Sums(NamedTuple):
    """Sums over units, n_uv of m_u answers of unit u having value v. Leading dimensions (replicates) are free."""

    units: Floats  # (...) with an answer
    shares: Floats  # (..., V) of n_uv / m_u over them
    pairable: Floats  # (...) units with two or more answers; only these enter what follows
    agreeing: Floats  # (...) of sum_v n_uv (n_uv - 1) / (m_u (m_u - 1)), the share of a unit's pairs that are equal
    coincidences: Floats  # (..., V, V) of n_uv (n_uw - [v = w]) / (m_u - 1)


def terms(counts: ArrayLike) -> Floats:
    """(U, T) what each unit adds to `Sums`, from (U, V) counts of its answers."""
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
    """Adds up `terms`; times: (..., U) how often each unit counts, by default once."""
    return named(terms.sum(axis=0) if times is None else np.asarray(times, dtype=np.float64) @ terms)


def named(terms: Floats) -> Sums:
    """The columns of (..., T) `terms`, or of sums of them."""
    values = int(np.sqrt(terms.shape[-1] - 3 + 0.25))  # T = 1 + V + 2 + V^2
    return Sums(
        units=terms[..., 0],
        shares=terms[..., 1 : 1 + values],
        pairable=terms[..., 1 + values],
        agreeing=terms[..., 2 + values],
        coincidences=terms[..., 3 + values :].reshape(*terms.shape[:-1], values, values),
    )


def percent_agreement(sums: Sums) -> Floats:
    """(...) The share of a unit's pairs of answers that are equal, the mean over units with a pair; NaN without one.

    It is the p_o of Fleiss' kappa. Over the pairs of all units one with two hundred answers, as calibration items have,
    would count as twenty thousand with two.
    """
    return _ratio(sums.agreeing, sums.pairable)


def krippendorff_alpha(sums: Sums, values: ArrayLike, level: Level) -> Floats:
    """alpha = 1 - D_o / D_e (Krippendorff 2011, Computing Krippendorff's alpha-reliability).

    Args:
        values: (V,) the values, ascending; numbers that mean something only for the interval level.
        level: how far two values are apart. nominal: the same or not; ordinal: by how many answers lie between them;
            interval: by their difference.

    Returns:
        (...) alpha, at most 1; NaN where it is undefined: no unit has two answers, or all pairable answers are the
        same (no variation, so nothing could have disagreed).
    """
    totals = sums.coincidences.sum(axis=-1)
    distances = _squared_distances(totals, np.asarray(values, dtype=float), level)
    observed = (sums.coincidences * distances).sum(axis=(-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * distances).sum(axis=(-2, -1))
    return 1 - _ratio(observed * (totals.sum(axis=-1) - 1), expected)


def fleiss_kappa(sums: Sums) -> Floats:
    """kappa = (p_o - p_e) / (1 - p_e) with p_e from the pooled shares of the values (Fleiss 1971).

    Generalised to differing numbers of labelers as in Gwet 2014, Handbook of Inter-Rater Reliability: p_o is the mean
    over units with two or more answers, a value's share the mean of its share in each unit with any.

    Returns:
        (...) kappa; NaN without a pair of answers or when all answers are the same.
    """
    chance = (_shares(sums) ** 2).sum(axis=-1)
    return _beyond_chance(percent_agreement(sums), chance)


def gwet_ac1(sums: Sums, categories: ArrayLike) -> Floats:
    """AC1: as Fleiss' kappa, but with p_e = sum_v p_v (1 - p_v) / (q - 1) (Gwet 2008).

    Stays meaningful where nearly all answers are the same, which makes kappa and alpha collapse.

    Args:
        categories: (...) or a number: q, how many answers there are to choose from, two at least.

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
    """above / below; NaN where below is zero."""
    return above / np.where(below == 0, np.nan, below)


def _squared_distances(totals: Floats, values: Floats, level: Level) -> Floats:
    """(..., V, V) squared distance of every pair of values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    # Ordinal: the answers from one value to the other, the outer two counted half; that is the distance of mid-ranks.
    mid_ranks = np.cumsum(totals, axis=-1) - totals / 2
    return (mid_ranks[..., :, None] - mid_ranks[..., None, :]) ** 2
