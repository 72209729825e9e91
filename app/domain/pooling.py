"""Pooling: estimate a labeler from their own answers plus a fixed number of average answers of the crowd."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def sums(index: NDArray[np.int64], values: NDArray[Any], n: int) -> Floats:
    """Return the sums (n,) of the values at each index."""
    return np.bincount(index, values, n).astype(np.float64, copy=False)


def pooled(hits: Floats, total: Floats, mean: float, weight: float) -> tuple[Floats, Floats]:
    """Return the shares hits / total and their variances, with `weight` answers of the crowd's mean added.

    They are the mean and variance of a Beta posterior.
    """
    n = total + weight
    share = (hits + weight * mean) / n
    return share, share * (1 - share) / (n + 1)


def logit_interval(mean: Floats, variance: Floats, z: float = 1.959964) -> tuple[Floats, Floats]:
    """Return bounds in (0, 1) of a share whose posterior has this mean and variance, normal on the logit scale."""
    mean = np.clip(mean, 1e-9, 1 - 1e-9)
    centre = np.log(mean / (1 - mean))
    half = np.minimum(z * np.sqrt(variance) / (mean * (1 - mean)), 600.0)  # exp overflows beyond this
    return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
