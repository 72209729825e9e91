"""The Bradley-Terry model of pairwise preference: P(chosen better) = s(d), d = r_chosen - r_rejected, s the logistic.

Sources: Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT) for the loss of reward models; Touvron et al. 2023
(Llama 2) for margins; Rao and Kupper 1967 and Davidson 1970 for ties as a third outcome. Losses are per row (B,): the
caller weights and averages them.
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
    """Return the negative log-likelihood (B,) of chosen and rejected rewards, (B,) each.

    Args:
        p_chosen: soft labels (B,): the probability that chosen is better; 1 if None.
        margin: margins (B,) that d must exceed, larger for stronger preferences; 0 if None.
    """
    d = chosen_rewards - rejected_rewards
    if margin is not None:
        d = d - margin
    if p_chosen is None:
        return -F.logsigmoid(d)  # L = -log s(d - m), Llama 2 eq. 2
    # L = -(p log s(d - m) + (1 - p) log s(m - d)): cross-entropy to the labelers' posterior
    return -(p_chosen * F.logsigmoid(d) + (1 - p_chosen) * F.logsigmoid(-d))


def margin_of_strength(strength: Tensor, kind: Literal["small", "large"]) -> Tensor:
    """Return margins (B,) for preference strengths (B,), from 0 for a tie to 3 for the strongest (Llama 2, table 27).

    Strengths 3, 2, 1, 0 have the margins 1, 2/3, 1/3, 0 (small) or 3, 2, 1, 0 (large), with linear interpolation.
    """
    return strength / 3 if kind == "small" else strength


def centering_penalty(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Return (r_c + r_r)^2 per row (B,), which keeps the mean reward near 0 (Eisenstein et al. 2023).

    The Bradley-Terry loss itself does not determine the mean.
    """
    return (chosen_rewards + rejected_rewards) ** 2


# ---- ties: three outcomes, chosen better, rejected better, neither ---------------------------------------------------


def rao_kupper_log_probabilities(d: Tensor, log_theta: Tensor) -> Tensor:
    """Return log-probabilities (B, 3) of chosen, rejected and tie for differences d (B,).

    In this model a tie means that |d| is too small to notice. `log_theta` () is the threshold n > 0. The caller keeps
    it positive: pass the softplus of the learned parameter.
    """
    n = log_theta.clamp(min=1e-6)  # softplus can underflow to 0, where a tie would have log-probability -infinity
    # P(c) = s(d - n), P(r) = s(-d - n), P(tie) = (e^{2n} - 1) s(d - n) s(-d - n)
    log_chosen, log_rejected = F.logsigmoid(d - n), F.logsigmoid(-d - n)
    log_tie = 2 * n + torch.log(-torch.expm1(-2 * n)) + log_chosen + log_rejected
    return torch.stack([log_chosen, log_rejected, log_tie], -1)


def davidson_log_probabilities(d: Tensor, log_nu: Tensor) -> Tensor:
    """Return log-probabilities (B, 3) of chosen, rejected and tie for differences d (B,).

    `log_nu` () is any real number. P(chosen | no tie) = s(d), the plain Bradley-Terry model.
    """
    # softmax over [d / 2, -d / 2, ln nu]
    return torch.log_softmax(torch.stack([d / 2, -d / 2, log_nu.expand_as(d)], -1), -1)


def rao_kupper_loss(d: Tensor, p_chosen: Tensor, p_rejected: Tensor, p_tie: Tensor, log_theta: Tensor) -> Tensor:
    """Return the cross-entropy (B,) between the labelers' posterior, in three parts (B,), and the Rao-Kupper model."""
    return -(torch.stack([p_chosen, p_rejected, p_tie], -1) * rao_kupper_log_probabilities(d, log_theta)).sum(-1)


def davidson_loss(d: Tensor, p_chosen: Tensor, p_rejected: Tensor, p_tie: Tensor, log_nu: Tensor) -> Tensor:
    """Return the cross-entropy (B,) between the labelers' posterior, in three parts (B,), and the Davidson model."""
    return -(torch.stack([p_chosen, p_rejected, p_tie], -1) * davidson_log_probabilities(d, log_nu)).sum(-1)


def rao_kupper_probabilities(d: Tensor, log_theta: Tensor) -> Tensor:
    """Return probabilities (B, 3) of chosen, rejected and tie."""
    return rao_kupper_log_probabilities(d, log_theta).exp()


def davidson_probabilities(d: Tensor, log_nu: Tensor) -> Tensor:
    """Return probabilities (B, 3) of chosen, rejected and tie."""
    return davidson_log_probabilities(d, log_nu).exp()


# ---- ensembles -------------------------------------------------------------------------------------------------------


def ensemble_score(
    rewards: Tensor, kind: Literal["mean", "min", "mean_minus_variance"] = "mean", variance_weight: float = 0.1
) -> Tensor:
    """Combine the rewards (B, H) of an ensemble's members into one score (B,) (Coste et al. 2023, section 3.2).

    `min` is the paper's worst-case optimisation and `mean_minus_variance` its uncertainty-weighted optimisation. If the
    members disagree about a response, it probably fools some of them.
    """
    if kind == "min":
        return rewards.amin(-1)
    mean = rewards.mean(-1)
    # mean_i r_i - lambda mean_i (r_i - mean)^2
    return mean if kind == "mean" else mean - variance_weight * rewards.var(-1, correction=0)
