"""Proximal policy optimisation (Schulman et al. 2017) of token sequences, as pure functions on tensors.

Shapes: (B, T) over the tokens of responses, padded on the right, unless said otherwise; `valid_mask` True on tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.algorithms.kl import k1, k2
from trainer.algorithms.masked import masked_mean


class TokenRewards(NamedTuple):
    """Rewards a token (B, T), and the part of them that is the leash, -beta * k1."""

    rewards: Tensor
    non_score: Tensor


def penalise_unfinished(scores: Tensor, finished: Tensor, penalty: float | None) -> Tensor:
    """Scores (B,) less `penalty` where a response was cut by length: that is no EOS, and ending must pay."""
    return scores if penalty is None else torch.where(finished, scores, scores - penalty)


def token_rewards(
    scores: Tensor, logps: Tensor, reference_logps: Tensor, valid_mask: Tensor, beta: float
) -> TokenRewards:
    """The KL-shaped reward (Ziegler et al. 2019, eq. 2), k1 a token, the score (B,) on the last valid token.

    That token is EOS where the response has one: the score is the reward of having ended there.
    """
    # r_t = -beta (log pi - log pi_ref) + [t is last] score
    non_score = torch.where(valid_mask, -beta * k1(logps, reference_logps), 0)
    last = valid_mask.long().cumsum(-1).argmax(-1)
    rewards = non_score.clone()
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return TokenRewards(rewards, non_score)


class PolicyLoss(NamedTuple):
    """The loss (), with gradients, and what is watched: all () and detached."""

    loss: Tensor
    approxkl: Tensor
    clipfrac: Tensor
    ratio: Tensor


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, valid_mask: Tensor, clip_range: float
) -> PolicyLoss:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), a mean over valid tokens."""
    # rho = pi / pi_old;  L = mean max(-A rho, -A clip(rho, 1 - e, 1 + e))
    ratio = torch.exp(torch.where(valid_mask, logps - old_logps, 0))
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = masked_mean(torch.maximum(unclipped, clipped), valid_mask)
    with torch.no_grad():
        approxkl = masked_mean(k2(logps, old_logps), valid_mask)
        clipfrac = masked_mean((clipped > unclipped).float(), valid_mask)
        return PolicyLoss(loss, approxkl, clipfrac, masked_mean(ratio, valid_mask))


class ValueLoss(NamedTuple):
    """The loss () with gradients; the share of tokens where clipping decided ()."""

    loss: Tensor
    clipfrac: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, valid_mask: Tensor, clip_range: float) -> ValueLoss:
    """The clipped value loss of PPO's reference implementation, a mean over valid tokens."""
    # L = 1/2 mean max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)
    clipped_values = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    unclipped, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    loss = masked_mean(torch.maximum(unclipped, clipped), valid_mask) / 2
    with torch.no_grad():
        return ValueLoss(loss, masked_mean((clipped > unclipped).float(), valid_mask))


def explained_variance(values: Tensor, returns: Tensor, valid_mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) (), over valid tokens: 1 is a perfect critic, 0 one that knows the mean only."""
    residuals, targets = (returns - values)[valid_mask], returns[valid_mask]
    return 1 - residuals.var(unbiased=False) / targets.var(unbiased=False).clamp(min=1e-8)
