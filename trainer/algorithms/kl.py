"""KL divergence from samples, and the controllers of its coefficient.

Everywhere x = log pi(token) - log pi_ref(token) for tokens sampled from pi.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# ---- estimators of KL(pi || pi_ref) a token (Schulman 2020, http://joschu.net/blog/kl-approx.html) -------------------


def k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """x: unbiased, of high variance, and negative at times."""
    return logps - reference_logps


def k2(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """x^2 / 2: biased, of low variance; never negative."""
    return (logps - reference_logps) ** 2 / 2


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """exp(-x) - 1 + x: unbiased and never negative."""
    x = logps - reference_logps
    return torch.expm1(-x) + x


# ---- the coefficient beta of the penalty -----------------------------------------------------------------------------


@dataclass(frozen=True)
class KLController:
    """The coefficient `beta`, fixed, or led towards a target KL in nats a sequence (Ziegler et al. 2019, section 2.2).

    A step returns the next controller and changes nothing.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def step(self, kl: float, episodes: int) -> "KLController":
        """The controller after `episodes` sequences with a mean KL of `kl` nats a sequence.

        More of them than `horizon` count as one horizon: beyond five, the rule as it stands would make beta negative,
        and a negative beta pays for leaving the reference.
        """
        if self.target is None:
            return self
        # e = clip(KL / target - 1, -0.2, 0.2);  beta <- beta (1 + e n / horizon)
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * min(episodes / self.horizon, 1)))
