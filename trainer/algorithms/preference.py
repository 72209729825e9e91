"""Preference optimisation without reinforcement learning. Each loss is a function of the log-ratio margin

h = (log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected)),

log-probs summed over a completion's tokens. Losses are per row (B,), so that the caller weighs and averages.
"""

import torch.nn.functional as F
from torch import Tensor


def log_ratio_margin(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
) -> Tensor:
    """h (B,) of sequence log-probs (B,) each."""
    return (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """beta log(pi / ref) (B,): the reward a policy is optimal for, up to a function of the prompt (DPO eq. 5)."""
    return beta * (policy_logps - reference_logps).detach()


def dpo_loss(h: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7) of margins h (B,); conservative DPO where labels flip with that probability.

    cDPO (Mitchell 2023): e is the share of labels believed wrong; its minimum is at beta h = log((1 - e) / e).
    """
    # L = -(1 - e) log s(beta h) - e log s(-beta h)
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
