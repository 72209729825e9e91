"""Estimators of the KL divergence from samples, and the controller of its coefficient.

Throughout, x = log pi(token) - log pi_ref(token) for tokens sampled from pi.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# ---- per-token estimators of KL(pi || pi_ref) (Schulman 2020, http://joschu.net/blog/kl-approx.html) -----------------


def k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Return x: unbiased, with high variance, and sometimes negative."""
    return logps - reference_logps


def k2(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Return x^2 / 2: biased, with low variance, and never negative."""
    return (logps - reference_logps) ** 2 / 2


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Return exp(-x) - 1 + x: unbiased and never negative."""
    x = logps - reference_logps
    return torch.expm1(-x) + x


# ---- the coefficient beta of the penalty -----------------------------------------------------------------------------


@dataclass(frozen=True)
class KLController:
    """The KL coefficient `beta`: fixed, or adapted to a target KL in nats per sequence.

    Source: Ziegler et al. 2019, section 2.2. `step` returns a new controller; the object is immutable.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def step(self, kl: float, episodes: int) -> "KLController":
        """Return the controller after `episodes` sequences with a mean KL of `kl` nats per sequence.

        `episodes` above `horizon` count as one horizon. With more than five horizons, the published rule would make
        beta negative, and a negative beta rewards leaving the reference.
        """
        if self.target is None:
            return self
        # e = clip(KL / target - 1, -0.2, 0.2);  beta <- beta (1 + e n / horizon)
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * min(episodes / self.horizon, 1)))
