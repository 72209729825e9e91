"""Standard errors of estimates from judgments that are correlated within a prompt and within a labeler."""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Covariances(NamedTuple):
    """Covariances (P, P) of the same estimates under different assumptions: see `covariances`."""

    each: tuple[Floats, ...]

    def error(self, contrast: Floats) -> float:
        """Return the standard error of `contrast @ estimates`: the largest under any of the assumptions.

        A two-way covariance need not be positive semi-definite. A sandwich is too small if few clusters inform an
        estimate, and 0 if only one does. The largest error guards against both (MacKinnon, Nielsen and Webb 2024,
        Jackknife Inference with Two-Way Clustering).
        """
        return sqrt(max(float(contrast @ covariance @ contrast) for covariance in self.each))


def covariances(
    information: Floats, scores: Floats, prompt: NDArray[np.int64], labeler: NDArray[np.int64] | None
) -> Covariances:
    """Return covariances of maximum likelihood estimates: of the model, by prompt, by labeler, and two-way.

    With H the information and s_g the sum of scores in cluster g of G, clustering one way gives the sandwich
    V = H^-1 (G / (G - 1) sum_g s_g s_g') H^-1. Two-way, V = V_prompt + V_labeler - V_both, where V_both has a cluster
    for each pair of a prompt and a labeler (Cameron, Gelbach and Miller 2011, Robust Inference With Multiway
    Clustering, Journal of Business & Economic Statistics 29).

    Args:
        information: (P, P). scores: (N, P).
        prompt, labeler: (N,) the cluster of each judgment. Without labelers, clustering is by prompt alone.
    """
    bread = np.linalg.inv(information).astype(np.float64)

    def sandwich(groups: NDArray[np.int64]) -> Floats:
        sums = cluster_sums(scores, groups)
        g = len(sums)
        # A single cluster does not tell how clusters differ: its scores sum to 0 at the maximum.
        return bread @ (sums.T @ sums * (g / (g - 1) if g > 1 else 1.0)) @ bread

    by_prompt = sandwich(prompt)
    if labeler is None:
        return Covariances((bread, by_prompt))
    by_labeler = sandwich(labeler)
    _, prompts = np.unique(prompt, return_inverse=True)
    names, labelers = np.unique(labeler, return_inverse=True)
    by_both = sandwich(prompts * len(names) + labelers)
    return Covariances((bread, by_prompt, by_labeler, by_prompt + by_labeler - by_both))


def cluster_sums(scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return the sums (G, P) of the rows (N, P) by group."""
    order = np.argsort(groups, kind="stable")
    begins = np.flatnonzero(np.diff(groups[order], prepend=groups[order][0] - 1))
    return np.add.reduceat(scores[order], begins, axis=0)
