"""Proximal policy optimisation (Schulman et al. 2017) of token sequences, as pure functions on tensors.

Unless stated otherwise, shapes are (B, T) over response tokens, padded on the right. `valid_mask` is True on tokens.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.algorithms.kl import k1, k2
from trainer.algorithms.masked import masked_mean


class TokenRewards(NamedTuple):
    """Per-token rewards (B, T), and their KL penalty part, -beta * k1."""

    rewards: Tensor
    non_score: Tensor


def penalise_unfinished(
    scores: Tensor, finished: Tensor, penalty: float | None, missing_eos: Literal["subtract", "replace"] = "subtract"
) -> Tensor:
    """Lower the scores (B,) of responses that were cut by length, so that the policy learns to end with EOS.

    `subtract` subtracts the penalty from the score. `replace` sets the score to -penalty, because the reward model
    never saw responses without an end (Huang et al. 2024, detail 4.1). If `penalty` is None, scores stay unchanged.
    """
    if penalty is None:
        return scores
    punished = scores - penalty if missing_eos == "subtract" else torch.full_like(scores, -penalty)
    return torch.where(finished, scores, punished)


def clip_scores(scores: Tensor, limit: float | None) -> Tensor:
    """Clip scores (B,) to [-limit, limit], so that one wrong score cannot dominate a batch; None does not clip."""
    return scores if limit is None else scores.clamp(-limit, limit)


@dataclass(frozen=True)
class RunningScale:
    """Mean and standard deviation of all scores so far (Chan et al. 1983, merging whole batches).

    `update` returns a new object; the object is immutable. All fields are numbers: save it in a checkpoint with
    `asdict` and restore it with `RunningScale(**saved)`.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def update(self, scores: Tensor) -> "RunningScale":
        """Return the scale with scores (B,) added."""
        n, batch = len(scores), scores.detach().double()
        if not n:
            return self
        mean, squares = batch.mean().item(), batch.var(correction=0).item() * n
        # d = mean_b - mean_a;  M = M_a + M_b + d^2 n_a n_b / n
        total, d = self.count + n, mean - self.mean
        return RunningScale(total, self.mean + d * n / total, self.squares + squares + d * d * self.count * n / total)

    @property
    def std(self) -> float:
        """Standard deviation, with Bessel's correction; 1 as long as it cannot be measured."""
        std = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return std if std > 1e-6 else 1.0

    def normalise(self, scores: Tensor) -> Tensor:
        """Divide scores (B,) by the standard deviation. They are not centred, because a score's sign has a meaning."""
        return scores / self.std


def token_rewards(
    scores: Tensor, logps: Tensor, reference_logps: Tensor, valid_mask: Tensor, beta: float
) -> TokenRewards:
    """Return the KL-shaped reward (Ziegler et al. 2019, eq. 2): -beta * k1 per token, plus the score on the last token.

    Scores are (B,). The last valid token is EOS if the response has ended: the score then rewards ending there.
    """
    # r_t = -beta (log pi - log pi_ref) + [t is last] score
    non_score = torch.where(valid_mask, -beta * k1(logps, reference_logps), 0)
    last = valid_mask.long().cumsum(-1).argmax(-1)
    rewards = non_score.clone()
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return TokenRewards(rewards, non_score)


class PolicyLoss(NamedTuple):
    """The loss () with gradients; the other fields are metrics, () and detached."""

    loss: Tensor
    approxkl: Tensor
    clipfrac: Tensor
    ratio: Tensor


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, valid_mask: Tensor, clip_range: float
) -> PolicyLoss:
    """Return the clipped surrogate (Schulman et al. 2017, eq. 7), a mean over valid tokens."""
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
    """The loss () with gradients; the share () of tokens for which the clipped term is larger."""

    loss: Tensor
    clipfrac: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, valid_mask: Tensor, clip_range: float) -> ValueLoss:
    """Return the clipped value loss of PPO's reference implementation, a mean over valid tokens."""
    # L = 1/2 mean max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)
    clipped_values = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    unclipped, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    loss = masked_mean(torch.maximum(unclipped, clipped), valid_mask) / 2
    with torch.no_grad():
        return ValueLoss(loss, masked_mean((clipped > unclipped).float(), valid_mask))


def explained_variance(values: Tensor, returns: Tensor, valid_mask: Tensor) -> Tensor:
    """Return 1 - Var(R - V) / Var(R) () over valid tokens: 1 for a perfect critic, 0 for one that knows only the mean.

    It is also 0 if all returns are equal: there is nothing to explain, and the quotient would be noise.
    """
    residuals, targets = (returns - values)[valid_mask], returns[valid_mask]
    variance = targets.var(unbiased=False)
    explained = 1 - residuals.var(unbiased=False) / variance
    return torch.where(variance > 1e-8, explained, 0.0)
