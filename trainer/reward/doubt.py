"""How unsure heads on a frozen trunk are of a response, and what that costs it.

Heads are fitted to comparisons of a few hundred responses. For a response unlike all of these their score is a guess,
and a policy finds the guesses that are too high: after 400 judgments that preferred short answers, one word of
gibberish scored higher than any sentence. Members do not warn of it, because they were all fitted to the same
responses. The posterior of the fit does. With a Gaussian around its minimum (Laplace's approximation; MacKay 1992, and
for reward models Yang et al. 2024, "Bayesian Reward Models for LLM Alignment") the variance of a response's reward is
x' H^-1 x, where H is the ridge plus the sum of p (1 - p) d d' over the comparisons' differences of features.

A response no less certain than most of those that were compared keeps its reward. Beyond that, the reward is lowered by
`weight` for each standard deviation: the answer may be good, but nobody has said so.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MOST = 512  # directions that are kept, the best known first; without the others a response is doubted too much
WITHIN = 0.95  # share of the responses that the heads were fitted to which are not doubted


class Doubt(NamedTuple):
    """Doubt as a function of a response's features (F). All tensors are fp32.

    Attributes:
        center, scale: (F,) features minus center, over scale, have standard deviation 1 / sqrt(F).
        directions: (K, F) orthonormal rows: those that comparisons have told something about.
        known: (K,) how much, from 0 to 1.
        ridge: of the fit; without any comparison a response's variance is its squared length over it.
        limit: the standard deviation up to which nothing is doubted, on Bradley-Terry's scale.
        weight: what a standard deviation beyond costs.
    """

    center: Tensor
    scale: Tensor
    directions: Tensor
    known: Tensor
    ridge: Tensor
    limit: Tensor
    weight: Tensor

    def deviation(self, features: Tensor) -> Tensor:
        """The standard deviation (S,) of the reward of responses with these features (S, F)."""
        inputs = (features.float() - self.center) / self.scale
        told = (inputs @ self.directions.T).square() @ self.known
        return ((inputs.square().sum(-1) - told).clamp(min=0) / self.ridge).sqrt()

    def cost(self, features: Tensor) -> Tensor:
        """(S,): what is taken from the rewards, on Bradley-Terry's scale."""
        return self.weight * (self.deviation(features) - self.limit).clamp(min=0)


def doubt(features: Tensor, scale: Tensor, sides: Tensor, margins: Tensor, ridge: float, weight: float) -> Doubt:
    """What heads that were fitted with this ridge are unsure of.

    Args:
        features: (S, F) of the responses that they were fitted to.
        scale: (F,) as the fit used it.
        sides: (2, P) the rows of `features` of each comparison's two responses.
        margins: (P,) rewards of the first less the second, on Bradley-Terry's scale.
        weight: what a standard deviation beyond the limit costs.
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
    """The largest singular values (K,) of a matrix (P, F), 512 at most, and their right vectors (K, F).

    Exactly, unless it has many more: then by random projections (Halko, Martinsson and Tropp 2011), in time that grows
    with P F and not with its square.
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
