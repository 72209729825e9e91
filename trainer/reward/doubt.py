"""The uncertainty of heads on a frozen trunk about a response, and the penalty for it ("doubt").

Heads are fitted to comparisons of a few hundred responses. For a response unlike all of them, the score is a guess, and
a policy finds the guesses that are too high. After 400 judgments that preferred short answers, for example, one word of
gibberish scored higher than any sentence. The spread of the members does not show this, because they were all fitted to
the same responses. The posterior of the fit does. In Laplace's approximation, a Gaussian around the minimum (MacKay
1992; for reward models Yang et al. 2024, "Bayesian Reward Models for LLM Alignment"), the variance of a response's
reward is x' H^-1 x. H is the ridge plus the sum of p (1 - p) d d' over the comparisons' feature differences d.

A response keeps its reward if its uncertainty is not above that of most compared responses. Beyond this limit, the
reward is lowered by `weight` per standard deviation: the answer may be good, but no judgment supports it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MOST = 512  # directions to keep, best known first; leaving out others can only make the doubt too large
WITHIN = 0.95  # share of the responses in the fit that get no penalty


class Doubt(NamedTuple):
    """The uncertainty penalty as a function of a response's features (F). All tensors are fp32.

    Attributes:
        center, scale: (F,) with (features - center) / scale, each input has standard deviation 1 / sqrt(F).
        directions: (K, F) orthonormal rows: the directions about which the comparisons hold information.
        known: (K,) how much of the variance in each direction the comparisons remove, from 0 to 1.
        ridge: the ridge of the fit; without comparisons, a response's variance is its squared length divided by it.
        limit: the standard deviation up to which there is no penalty, on Bradley-Terry's scale.
        weight: the penalty per standard deviation beyond the limit.
    """

    center: Tensor
    scale: Tensor
    directions: Tensor
    known: Tensor
    ridge: Tensor
    limit: Tensor
    weight: Tensor

    def deviation(self, features: Tensor) -> Tensor:
        """Return the standard deviation (S,) of the rewards of responses with features (S, F)."""
        inputs = (features.float() - self.center) / self.scale
        told = (inputs @ self.directions.T).square() @ self.known
        return ((inputs.square().sum(-1) - told).clamp(min=0) / self.ridge).sqrt()

    def cost(self, features: Tensor) -> Tensor:
        """Return the amounts (S,) to subtract from the rewards, on Bradley-Terry's scale."""
        return self.weight * (self.deviation(features) - self.limit).clamp(min=0)


def doubt(features: Tensor, scale: Tensor, sides: Tensor, margins: Tensor, ridge: float, weight: float) -> Doubt:
    """Return the uncertainty penalty of heads that were fitted with this ridge.

    Args:
        features: (S, F) of the responses in the fit.
        scale: (F,) the scale of the features in the fit.
        sides: (2, P) the rows in `features` of each comparison's two responses.
        margins: (P,) reward of the first response minus the second, on Bradley-Terry's scale.
        weight: the penalty per standard deviation beyond the limit.
    """
    center = features.mean(0)
    inputs = ((features - center) / scale).double()
    first, second = sides
    p = torch.sigmoid(margins.double())
    curved = (p * (1 - p)).sqrt()[:, None] * (inputs[first] - inputs[second])
    values, directions = _largest(curved)
    squared = values.square()
    found = Doubt(
        center=center.float(),
        scale=scale.float(),
        directions=directions.float(),
        known=(squared / (squared + ridge)).float(),
        ridge=torch.tensor(float(ridge)),
        limit=torch.tensor(0.0),
        weight=torch.tensor(float(weight)),
    )
    limit = torch.quantile(found.deviation(features), WITHIN)
    return found._replace(limit=limit)


def _largest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest singular values (K,) of a matrix (P, F), at most 512, and their right vectors (K, F).

    They are exact if the smaller dimension is at most 1024. Otherwise they come from random projections (Halko,
    Martinsson and Tropp 2011), in time proportional to P F.
    """
    if min(matrix.shape) <= 2 * MOST:
        _, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, values, columns = torch.svd_lowrank(matrix, q=MOST, niter=4)
        right = columns.T
    kept = min(MOST, int((values > 1e-9).sum()))
    return values[:kept], right[:kept]
