"""Cohen's kappa: of two labelers, plain and weighted, from how often each pair of their answers came together; of many
labelers, as Conger generalised it."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.domain.pooling import Floats, sums

Weights = Literal["none", "linear", "quadratic"]


def cohen_kappa(confusion: ArrayLike, weights: Weights = "none") -> NDArray[np.float64]:
    """kappa = 1 - sum w o / sum w e over pairs of values, e from each labeler's own shares (Cohen 1960, 1968).

    Args:
        confusion: (..., V, V) units to which the first labeler said row v and the second column w.
        weights: how grave a difference is. none: any counts the same; linear, quadratic: by steps of the scale.

    Returns:
        (...) kappa, at most 1; NaN where it is undefined: no unit, or both always gave the same single value.
    """
    observed = np.asarray(confusion, dtype=np.float64)
    steps = np.abs(np.subtract.outer(np.arange(observed.shape[-1]), np.arange(observed.shape[-1])))
    disagreement = {"none": (steps > 0) * 1.0, "linear": steps * 1.0, "quadratic": steps**2.0}[weights]
    rows, columns = observed.sum(axis=-1), observed.sum(axis=-2)
    expected = (rows[..., :, None] * columns[..., None, :] * disagreement).sum(axis=(-2, -1))
    apart = (observed * disagreement).sum(axis=(-2, -1)) * rows.sum(axis=-1)
    return 1 - apart / np.where(expected == 0, np.nan, expected)


class OwnHabits(NamedTuple):
    """What chance alone would give where each labeler answers by their own shares of the values.

    chance: (P,) by part, the mean over all pairs of its labelers of the probability to say the same; NaN with fewer
        than two. moves: (U,) how much a unit adds to its part's chance when it counts once more, to first order; the
        units of a part add up to nothing.
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
    """The chance agreement of Conger (1980, Integration and generalization of kappas for multiple raters), answers
    missing as in Gwet 2014, Handbook of Inter-Rater Reliability; of two who answered the same units it is Cohen's.

    Args:
        part, unit, labeler, value: (J,) of each answer, numbered from 0; all answers to a unit are of one part.
    """
    codes, who = np.unique(part * (int(labeler.max(initial=0)) + 1) + labeler, return_inverse=True)
    own_part = np.zeros(len(codes), dtype=np.int64)  # of W labelers, counted apart in each part
    own_part[who] = part
    answers = np.bincount(who, minlength=len(codes))
    shares = np.bincount(who * values + value, minlength=len(codes) * values).reshape(-1, values) / answers[:, None]
    number = np.bincount(own_part, minlength=parts)
    pairs = np.where(number > 1, number * (number - 1.0), np.nan)
    total = np.stack([sums(own_part, share, parts) for share in shares.T], axis=1)
    chance = ((total**2).sum(axis=1) - sums(own_part, (shares**2).sum(axis=1), parts)) / pairs
    others = total[own_part] - shares
    mean = (others * shares).sum(axis=1)
    slope = 2 * (others[who, value] - mean[who]) / (answers[who] * pairs[part])
    return OwnHabits(chance, sums(unit, slope, units))
