"""Generalised advantage estimation (Schulman et al. 2016) over padded batches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Advantages(NamedTuple):
    """Advantages and returns, both (B, T), 0 where `valid_mask` is False. Advantages are not whitened yet."""

    advantages: Tensor
    returns: Tensor


def gae(rewards: Tensor, values: Tensor, valid_mask: Tensor, gamma: float, gae_lambda: float) -> Advantages:
    """Return advantages and returns for rewards (B, T) and values (B, T).

    `values[:, t]` is the value of the state before token t is chosen. An episode ends with its last valid token, which
    carries the score. The state after it is worth 0 and needs no value. (Implementations that put the score one step
    after the last token need a value mask one longer than the policy's; here both use the same mask.) The valid tokens
    of a row must be contiguous; padding may be on either side.
    """
    goes_on = F.pad(valid_mask[:, 1:], (0, 1), value=False)  # the next token is part of the episode
    next_values = torch.where(goes_on, F.pad(values[:, 1:], (0, 1)), 0)
    # delta_t = r_t + gamma V_{t+1} - V_t                          (Schulman et al. 2016, eq. 10)
    deltas = torch.where(valid_mask, rewards + gamma * next_values - values, 0)
    advantage = torch.zeros_like(deltas[:, 0])
    advantages = torch.zeros_like(deltas)
    for t in reversed(range(deltas.shape[1])):
        # A_t = delta_t + gamma lambda A_{t+1}                     (eq. 16, as a recursion)
        advantage = deltas[:, t] + gamma * gae_lambda * torch.where(goes_on[:, t], advantage, 0)
        advantage = torch.where(valid_mask[:, t], advantage, 0)
        advantages[:, t] = advantage
    # R_t = A_t + V_t: targets of the value function, computed before advantages are whitened
    returns = torch.where(valid_mask, advantages + values, 0)
    return Advantages(advantages, returns)
