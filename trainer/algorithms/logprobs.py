"""Log-probabilities of tokens from logits, at a sampling temperature."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) of logits (N, V) and tokens (N,), in fp32.

    Logits are divided by the temperature tokens were sampled at, so that this is the log-prob of the distribution they
    came from: sampling, reference and update must agree on it.
    """
    # log softmax(z / T)[token]; the fused kernel never holds a second (N, V) tensor of log-probs
    return -F.cross_entropy(
        logits.float() / temperature if temperature != 1 else logits.float(), tokens, reduction="none"
    )


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats (N,) of the distributions given by logits (N, V)."""
    scaled = logits.float() / temperature
    # H = log Z - sum_v p_v z_v
    return torch.logsumexp(scaled, -1) - (torch.softmax(scaled, -1) * scaled).sum(-1)


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Puts values (N,) at the N True places of mask (B, T) in row order, 0 elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def sequence_logps(logps: Tensor, mask: Tensor) -> Tensor:
    """Sums (B,) of token log-probs (N,) that lie, in row order, at the N True places of mask (B, T)."""
    rows = mask.nonzero()[:, 0]
    return torch.zeros(mask.shape[0], dtype=logps.dtype, device=logps.device).index_add(0, rows, logps)
