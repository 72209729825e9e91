"""RLOO and GRPO as pure functions: several answers to one prompt are compared with each other, without a critic.

Shapes: G groups of k answers each; S answers; N tokens, answer by answer. `owners` (N,) gives each token's answer.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.algorithms.kl import k2, k3

Normalisation = Literal["constant", "published"]

EPS = 1e-4  # added to a group's standard deviation, as in the published implementation
NOISE = 1e-5  # relative: rewards that include a KL term vary by less than this between two forward passes


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return advantages (G, k) for rewards (G, k), with the mean reward of the other answers as the baseline.

    The baseline does not depend on the answer itself, so the gradient stays unbiased (Ahmadian et al. 2024, eq. 8; Kool
    et al. 2019).
    """
    # A_i = r_i - 1 / (k - 1) sum_{j != i} r_j
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def group_relative(rewards: Tensor, scaled: bool) -> Tensor:
    """Return advantages (G, k) for rewards (G, k), with the group's mean as the baseline.

    `scaled` divides by the group's standard deviation. Scaling is a bias: prompts with nearly equal answers weigh as
    much as prompts with different answers. Shao et al. 2024 (section 4.1.2) scale; Liu et al. 2025 do not.
    """
    # A_i = (r_i - mean r) / (std r + eps)
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + EPS) if scaled else centred


def has_signal(rewards: Tensor) -> Tensor:
    """Return whether the rewards (G, k) of each group (G,) differ by more than float noise.

    Equal rewards carry no signal (Yu et al. 2025, section 3.2).
    """
    spread = rewards.amax(1) - rewards.amin(1)
    return spread > NOISE * (1 + rewards.abs().amax(1))


def answer_weights(lengths: Tensor, answers: int, longest: int, normalisation: Normalisation) -> Tensor:
    """Return the weight in the loss of each token of an answer, (S,), for answers with `lengths` (S,).

    `constant`: every token has the same weight, 1 / (answers * longest) (Dr. GRPO, Liu et al. 2025).
    `published`: every answer has the same weight, spread over its tokens, so a token of a long answer counts less (Shao
    et al. 2024, eq. 3).
    """
    per_answer = torch.full_like(lengths, longest) if normalisation == "constant" else lengths
    return 1 / (answers * per_answer.float())


class GroupLoss(NamedTuple):
    """The loss of a batch; all fields have shape ().

    Attributes:
        policy: the clipped surrogate, with gradients.
        kl: the KL to the reference with the same weights, with gradients.
        approxkl: mean over tokens, detached.
        clipfrac, ratio: means over the units that have a ratio (tokens or whole answers), detached.
    """

    policy: Tensor
    kl: Tensor
    approxkl: Tensor
    clipfrac: Tensor
    ratio: Tensor


def group_loss(
    logps: Tensor,
    old_logps: Tensor,
    reference_logps: Tensor,
    advantages: Tensor,
    weights: Tensor,
    owners: Tensor,
    clip_low: float,
    clip_high: float,
    whole_answers: bool = False,
    unbiased_kl: bool = False,
) -> GroupLoss:
    """Return the clipped surrogate of log-probs (N,) and the KL penalty.

    The lower and upper clip bounds are separate (DAPO, Yu et al. 2025, eq. 10).

    Args:
        advantages, weights: (S,), per answer; a weight applies to each of the answer's tokens.
        whole_answers: treat an answer as one action with one ratio (RLOO as published); its weight then counts once.
        unbiased_kl: multiply k3 by the token's ratio. The gradient is then the gradient of KL(pi || pi_ref)
            (DeepSeek-V3.2, section 3.1). If False, as in the GRPO paper, it is the gradient of KL(pi_ref || pi).
    """
    # rho = pi / pi_old;  L = -sum w min(rho A, clip(rho, 1 - low, 1 + high) A)
    log_ratio = logps - old_logps
    if whole_answers:
        log_ratio = torch.zeros_like(advantages).index_add(0, owners, log_ratio)
        unit_advantages, unit_weights = advantages, weights
    else:
        unit_advantages, unit_weights = advantages[owners], weights[owners]
    ratio = log_ratio.exp()
    plain = -unit_advantages * ratio
    clipped = -unit_advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    policy = (unit_weights * torch.maximum(plain, clipped)).sum()
    token_kl = k3(logps, reference_logps) * ((logps - old_logps).exp() if unbiased_kl else 1)
    kl = (weights[owners] * token_kl).sum()
    with torch.no_grad():
        approxkl = k2(logps, old_logps).mean()
        return GroupLoss(policy, kl, approxkl, (clipped > plain).float().mean(), ratio.mean())
