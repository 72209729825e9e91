"""Cohen's kappa of two labelers, plain and weighted, from how often each pair of their answers came together."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
