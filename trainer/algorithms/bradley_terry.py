"""The Bradley-Terry model of pairwise preference: P(chosen better) = s(d), d = r_chosen - r_rejected, s the logistic.

Bradley and Terry 1952; as a loss for reward models Ouyang et al. 2022 (InstructGPT), with margins Touvron et al. 2023
(Llama 2). With ties as an outcome of its own: Rao and Kupper 1967, Davidson 1970. Losses are per row (B,), so that the
caller weighs and averages.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    p_chosen: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood (B,) of rewards (B,) each.

    Args:
        p_chosen: probability (B,) that chosen is better, the soft label; certain (1) if None.
        margin: what d must exceed (B,), larger for stronger preferences; 0 if None.
    """
    d = chosen_rewards - rejected_rewards
    if margin is not None:
        d = d - margin
    if p_chosen is None:
        return -F.logsigmoid(d)  # L = -log s(d - m), Llama 2 eq. 2
    # L = -(p log s(d - m) + (1 - p) log s(m - d)): cross-entropy to the labelers' posterior
    return -(p_chosen * F.logsigmoid(d) + (1 - p_chosen) * F.logsigmoid(-d))


def margin_of_strength(strength: Tensor, kind: Literal["small", "large"]) -> Tensor:
    """Margins (B,) of preference strengths (B,), 0 a tie and 3 the strongest (Llama 2, table 27).

    Strengths 3, 2, 1, 0 have the margins 1, 2/3, 1/3, 0 (small) or 3, 2, 1, 0 (large); linear between them.
    """
    return strength / 3 if kind == "small" else strength


def centering_penalty(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """(r_c + r_r)^2 per row (B,): holds the mean, which Bradley-Terry leaves free, near 0 (Eisenstein et al. 2023)."""
    return (chosen_rewards + rejected_rewards) ** 2


# ---- ties: three outcomes, chosen better, rejected better, neither ---------------------------------------------------


def rao_kupper_log_probabilities(d: Tensor, log_theta: Tensor) -> Tensor:
    """Log-probabilities (B, 3) of chosen, rejected, tie at differences d (B,): a tie is a |d| too small to see.

    `log_theta` () is that threshold n > 0. Positivity is the caller's: let n be the softplus of what is learned.
    """
    n = log_theta.clamp(min=1e-6)  # softplus underflows to 0, where a tie would be impossible and its log infinite
    # P(c) = s(d - n), P(r) = s(-d - n), P(tie) = (e^{2n} - 1) s(d - n) s(-d - n)
    log_chosen, log_rejected = F.logsigmoid(d - n), F.logsigmoid(-d - n)
    log_tie = 2 * n + torch.log(-torch.expm1(-2 * n)) + log_chosen + log_rejected
    return torch.stack([log_chosen, log_rejected, log_tie], -1)


def davidson_log_probabilities(d: Tensor, log_nu: Tensor) -> Tensor:
    """Log-probabilities (B, 3) of chosen, rejected, tie at differences d (B,); `log_nu` () is any real number.

    P(chosen | no tie) = s(d), the plain Bradley-Terry model.
    """
    # softmax over [d / 2, -d / 2, ln nu]
    return torch.log_softmax(torch.stack([d / 2, -d / 2, log_nu.expand_as(d)], -1), -1)


def rao_kupper_loss(d: Tensor, p_chosen: Tensor, p_rejected: Tensor, p_tie: Tensor, log_theta: Tensor) -> Tensor:
    """Cross-entropy (B,) of the Rao-Kupper model at d (B,) to the labelers' posterior, its three parts (B,) each."""
    return -(torch.stack([p_chosen, p_rejected, p_tie], -1) * rao_kupper_log_probabilities(d, log_theta)).sum(-1)


def davidson_loss(d: Tensor, p_chosen: Tensor, p_rejected: Tensor, p_tie: Tensor, log_nu: Tensor) -> Tensor:
    """Cross-entropy (B,) of the Davidson model at d (B,) to the labelers' posterior, its three parts (B,) each."""
    return -(torch.stack([p_chosen, p_rejected, p_tie], -1) * davidson_log_probabilities(d, log_nu)).sum(-1)


def rao_kupper_probabilities(d: Tensor, log_theta: Tensor) -> Tensor:
    """Probabilities (B, 3) of chosen, rejected, tie."""
    return rao_kupper_log_probabilities(d, log_theta).exp()


def davidson_probabilities(d: Tensor, log_nu: Tensor) -> Tensor:
    """Probabilities (B, 3) of chosen, rejected, tie."""
    return davidson_log_probabilities(d, log_nu).exp()


# ---- ensembles -------------------------------------------------------------------------------------------------------


def ensemble_score(
    rewards: Tensor, kind: Literal["mean", "min", "mean_minus_variance"] = "mean", variance_weight: float = 0.1
) -> Tensor:
    """One score (B,) of the rewards (B, H) of an ensemble's members (Coste et al. 2023, section 3.2).

    `min` is their worst-case optimisation, `mean_minus_variance` the uncertainty-weighted one: a response that the
    members disagree about is likely one that fools some of them.
    """
    if kind == "min":
        return rewards.amin(-1)
    mean = rewards.mean(-1)
    # mean_i r_i - lambda mean_i (r_i - mean)^2
    return mean if kind == "mean" else mean - variance_weight * rewards.var(-1, correction=0)
