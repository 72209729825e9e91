"""Log-probabilities of tokens from logits or from hidden states, at a sampling temperature, in fp32.

Logits are divided by the temperature tokens were sampled at, so that a log-prob is that of the distribution the token
came from: sampling, reference and update must agree on it.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) (N,) of logits (N, V) and tokens (N,)."""
    # log softmax(z / T)[token], whose (N, V) log-probs backward holds: see projected_logps
    return -F.cross_entropy(
        logits.float() / temperature if temperature != 1 else logits.float(), tokens, reduction="none"
    )


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats (N,) of the distributions given by logits (N, V)."""
    logps = torch.log_softmax(logits.float() / temperature, -1)
    return -(logps.exp() * logps).sum(-1)  # H = -sum_v p_v log p_v


# ---- from hidden states ----------------------------------------------------------------------------------------------


class Projected(NamedTuple):
    """Log-probs of tokens (N,), and entropies in nats (N,), without gradient, if they were asked for."""

    logps: Tensor
    entropy: Tensor | None


def projected_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int = 256,
    with_entropy: bool = False,
    kept_logits: int = 2**28,
) -> Projected:
    """`token_logps` of the logits hidden (N, H) @ weight (V, H)^T, which never exist for more than `chunk` rows.

    A log-prob's gradient in its hidden state is known as soon as its logits are, up to the factor that backward brings
    with it: so it is computed then, and nothing of size V is kept, at no more work. A weight that learns needs the
    logits again in backward: up to `kept_logits` of them are kept, more are computed a second time. A head that scales
    its logits goes into the temperature; one with a bias or a soft cap takes `token_logps`.
    """
    weight_learns = torch.is_grad_enabled() and weight.requires_grad
    if weight_learns and len(tokens) * len(weight) <= kept_logits:
        logits = F.linear(hidden.to(weight.dtype), weight)
        parts = [entropy(part, temperature) for part in logits.detach().split(chunk)] if with_entropy else []
        return Projected(token_logps(logits, tokens, temperature), torch.cat(parts) if with_entropy else None)
    if weight_learns or (torch.is_grad_enabled() and hidden.requires_grad):
        logps, entropies = _ProjectedLogps.apply(hidden, weight, tokens, temperature, chunk, with_entropy)
    else:
        logps, entropies, _ = _forward(hidden, weight, tokens, temperature, chunk, with_entropy, False)
    return Projected(logps, entropies if with_entropy else None)


def _forward(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, chunk: int, with_entropy: bool, slopes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs (N,), entropies (N,) and, if asked for, gradients of each log-prob in its hidden state (N, H)."""
    logps = torch.empty(len(tokens), device=hidden.device)
    entropies = torch.empty_like(logps) if with_entropy else logps.new_empty(0)
    gradients = torch.empty_like(hidden) if slopes else hidden.new_empty(0)
    for rows in _chunks(len(tokens), chunk):
        chosen = tokens[rows, None]
        logs = _log_softmax(hidden[rows], weight, temperature)
        logps[rows] = logs.gather(1, chosen).squeeze(1)
        if not (with_entropy or slopes):
            continue
        if with_entropy:
            probabilities = logs.exp()
            entropies[rows] = -(probabilities * logs).sum(-1)
        else:
            probabilities = logs.exp_()
        if slopes:
            # d log p(token) / d h = (w_token - sum_v p_v w_v) / T
            expected = torch.mm(probabilities.to(weight.dtype), weight)
            gradients[rows] = ((weight[chosen.squeeze(1)] - expected) / temperature).to(hidden.dtype)
    return logps, entropies, gradients


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = F.linear(hidden.to(weight.dtype), weight).float()
    return torch.log_softmax(logits / temperature if temperature != 1 else logits, -1)


def _chunks(rows: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, rows, chunk)]


class _ProjectedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logps, entropies, slopes = _forward(
            hidden, weight, tokens, temperature, chunk, with_entropy, ctx.needs_input_grad[0]
        )
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(slopes, *((hidden, weight, tokens) if learns else ()))
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _entropies: Tensor) -> tuple[Tensor | None, ...]:
        slopes, *learning = ctx.saved_tensors
        grad_hidden = slopes * grad[:, None].to(slopes.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            hidden, weight, tokens = learning
            grad_weight = torch.zeros_like(weight)
            for rows in _chunks(len(tokens), ctx.chunk):
                # d log p(token) / d w_v = (1[v is token] - p_v) h / T, weighed by what comes from above
                scale = grad[rows, None] / ctx.temperature
                logits_grad = _log_softmax(hidden[rows], weight, ctx.temperature).exp_().mul_(-scale)
                logits_grad.scatter_add_(1, tokens[rows, None], scale)
                grad_weight.addmm_(logits_grad.to(weight.dtype).t(), hidden[rows].to(weight.dtype))
        return grad_hidden, grad_weight, None, None, None, None


# ---- rows ------------------------------------------------------------------------------------------------------------


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Puts values (N,) at the N True places of mask (B, T) in row order, 0 elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
