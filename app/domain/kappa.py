"""Cohen's kappa of two labelers, plain and weighted, and Conger's generalisation to several labelers."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.domain.pooling import Floats, sums

Weights = Literal["none", "linear", "quadratic"]


def cohen_kappa(confusion: ArrayLike, weights: Weights = "none") -> NDArray[np.float64]:
    """kappa = 1 - sum w o / sum w e over pairs of values, with e from each labeler's own shares (Cohen 1960, 1968).

    Args:
        confusion: (..., V, V) number of units with value v (row) of the first labeler and w (column) of the second.
        weights: weights w of differences. none: all differences count the same; linear, quadratic: by steps of the
            scale.

    Returns:
        (...) kappa, at most 1. NaN if it is undefined: no units, or both labelers always gave the same single value.
    """
    observed = np.asarray(confusion, dtype=np.float64)
    steps = np.abs(np.subtract.outer(np.arange(observed.shape[-1]), np.arange(observed.shape[-1])))
    disagreement = {"none": (steps > 0) * 1.0, "linear": steps * 1.0, "quadratic": steps**2.0}[weights]
    rows, columns = observed.sum(axis=-1), observed.sum(axis=-2)
    expected = (rows[..., :, None] * columns[..., None, :] * disagreement).sum(axis=(-2, -1))
    apart = (observed * disagreement).sum(axis=(-2, -1)) * rows.sum(axis=-1)
    return 1 - apart / np.where(expected == 0, np.nan, expected)


def numbered(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Number the distinct non-negative codes; return each code's number, and how many there are.

    If the codes are small enough for a table, no sorting is needed.
    """
    places = int(codes.max(initial=-1)) + 1
    if places > 16 * len(codes) + 1000:
        found, index = np.unique(codes, return_inverse=True)
        return index, len(found)
    is_there = np.zeros(places, dtype=bool)
    is_there[codes] = True
    number = np.cumsum(is_there) - 1
    return number[codes], int(is_there.sum())


class OwnHabits(NamedTuple):
    """Agreement by chance, if each labeler answers at random with their own shares of the values.

    Attributes:
        chance: (P,) for each part, the probability of equal answers, averaged over all pairs of labelers; NaN with
            fewer than two labelers.
        moves: (U,) first-order change of the part's chance if a unit counts once more; the sum over a part is 0.
    """

    chance: Floats
    moves: Floats


def own_habits(
    part: NDArray[np.int64],
    unit: NDArray[np.int64],
    labeler: NDArray[np.int64],
    value: NDArray[np.int64],
    *,
    parts: int,
    units: int,
    values: int,
) -> OwnHabits:
    """Return the chance agreement of Conger (1980, Integration and generalization of kappas for multiple raters).

    Missing answers are treated as in Gwet 2014, Handbook of Inter-Rater Reliability. For two labelers who answered the
    same units, it is Cohen's chance agreement.

    Args:
        part, unit, labeler, value: (J,) of each answer, numbered from 0; all answers to a unit are in the same part.
    """
    who, n = numbered(part * (int(labeler.max(initial=0)) + 1) + labeler)  # a labeler counts separately in each part
    own_part = np.zeros(n, dtype=np.int64)
    own_part[who] = part
    answers = np.bincount(who, minlength=n)
    cell = who * values + value
    shares = np.bincount(cell, minlength=n * values).reshape(-1, values) / answers[:, None]
    number = np.bincount(own_part, minlength=parts)
    pairs = np.where(number > 1, number * (number - 1.0), np.nan)
    total = np.stack([sums(own_part, share, parts) for share in shares.T], axis=1)
    chance = ((total**2).sum(axis=1) - sums(own_part, (shares**2).sum(axis=1), parts)) / pairs
    others = total[own_part] - shares
    mean = (others * shares).sum(axis=1, keepdims=True)
    slope = 2 * (others - mean) / (answers * pairs[own_part])[:, None]
    return OwnHabits(chance, sums(unit, slope.ravel()[cell], units))
