"""RLOO and GRPO as pure functions: several answers to one prompt are compared with each other, without a critic.

Shapes: G groups of k answers each; S answers; N tokens, answer by answer, `owners` (N,) saying whose each token is.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.algorithms.kl import k2, k3

Normalisation = Literal["constant", "published"]

EPS = 1e-4  # added to a group's standard deviation, as in the published implementation
NOISE = 1e-5  # relative: rewards that hold a KL differ by less from one pass of the models to the next


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages (G, k) of rewards (G, k): the baseline is the mean of the other answers' rewards.

    It does not depend on the answer itself, so the gradient stays unbiased (Ahmadian et al. 2024, eq. 8; Kool et al.
    2019).
    """
    # A_i = r_i - 1 / (k - 1) sum_{j != i} r_j
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def group_relative(rewards: Tensor, scaled: bool) -> Tensor:
    """Advantages (G, k) of rewards (G, k): the baseline is their mean; `scaled` divides by their standard deviation.

    Scaling gives prompts whose answers are nearly alike as much weight as those where they differ: a bias (Shao et al.
    2024, section 4.1.2, scale; Liu et al. 2025 do not).
    """
    # A_i = (r_i - mean r) / (std r + eps)
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + EPS) if scaled else centred


def has_signal(rewards: Tensor) -> Tensor:
    """Whether the rewards (G, k) of a group (G,) differ by more than float noise: equal ones say nothing (Yu et al.
    2025, section 3.2).
    """
    spread = rewards.amax(1) - rewards.amin(1)
    return spread > NOISE * (1 + rewards.abs().amax(1))


def answer_weights(lengths: Tensor, answers: int, longest: int, normalisation: Normalisation) -> Tensor:
    """How much each token of an answer counts in the loss, (S,), for answers with `lengths` (S,).

    `constant`: every token the same, 1 / (answers * longest) (Dr. GRPO, Liu et al. 2025). `published`: every answer the
    same, a mean over its tokens, so that a token of a long answer counts less (Shao et al. 2024, eq. 3).
    """
    per_answer = torch.full_like(lengths, longest) if normalisation == "constant" else lengths
    return 1 / (answers * per_answer.float())


class GroupLoss(NamedTuple):
    """All (). With gradients: the clipped surrogate, and the KL to the reference by the same weights. Detached: means
    over what has a ratio, the tokens or the answers; `approxkl` is one over tokens.
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
    """The clipped surrogate of log-probs (N,) with bounds apart (DAPO, Yu et al. 2025, eq. 10), and the leash.

    Args:
        advantages, weights: (S,) of each answer; a weight counts for each of its tokens.
        whole_answers: an answer is one action with one ratio (RLOO as published); its weight then counts once.
        unbiased_kl: multiply k3 by the token's ratio. The gradient is then that of KL(pi || pi_ref) (DeepSeek-V3.2,
            section 3.1); without, as GRPO was published, that of KL(pi_ref || pi).
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
