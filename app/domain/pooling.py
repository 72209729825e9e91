"""Pooling: what is known of a labeler is their own answers and, in place of those they have not given, the crowd's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def sums(index: NDArray[np.int64], values: NDArray[Any], n: int) -> Floats:
    """(n,) sums of the values at each index."""
    return np.bincount(index, values, n).astype(np.float64, copy=False)


def pooled(hits: Floats, total: Floats, mean: float, weight: float) -> tuple[Floats, Floats]:
    """Shares hits / total and their variance, each as if `weight` answers of the crowd, of this mean, came on top.

    They are the mean and variance of a Beta posterior.
    """
    n = total + weight
    share = (hits + weight * mean) / n
    return share, share * (1 - share) / (n + 1)


def logit_interval(mean: Floats, variance: Floats, z: float = 1.959964) -> tuple[Floats, Floats]:
    """Bounds of a share whose posterior has this mean and variance, normal on the logit scale: within (0, 1)."""
    mean = np.clip(mean, 1e-9, 1 - 1e-9)
    centre = np.log(mean / (1 - mean))
    half = np.minimum(z * np.sqrt(variance) / (mean * (1 - mean)), 600.0)  # beyond, exp overflows: nothing is known
    return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
