"""Log-probabilities of tokens from logits or from hidden states, at a sampling temperature, in fp32.

Logits are divided by the sampling temperature, so a log-prob belongs to the distribution that the token was drawn from.
Sampling, reference and update must use the same temperature.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log p(token) (N,) for logits (N, V) and tokens (N,)."""
    # log softmax(z / T)[token]. Backward keeps all (N, V) log-probs; projected_logps avoids that.
    return -F.cross_entropy(
        logits.float() / temperature if temperature != 1 else logits.float(), tokens, reduction="none"
    )


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the entropy in nats (N,) of the distributions given by logits (N, V)."""
    logps = torch.log_softmax(logits.float() / temperature, -1)
    return -(logps.exp() * logps).sum(-1)  # H = -sum_v p_v log p_v


# ---- from hidden states ----------------------------------------------------------------------------------------------


class Projected(NamedTuple):
    """Log-probs of tokens (N,), and two optional fields (N,) without gradient.

    Attributes:
        entropy: in nats.
        correct: whether the token was the most likely token.
    """

    logps: Tensor
    entropy: Tensor | None
    correct: Tensor | None = None


class _How(NamedTuple):
    """Settings of the forward and backward passes over the chunks. Matrix products are computed in `dtype`."""

    temperature: float
    chunk: int
    with_entropy: bool
    with_correct: bool
    dtype: torch.dtype


def projected_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int = 256,
    with_entropy: bool = False,
    kept_logits: int = 2**26,
    *,
    with_correct: bool = False,
    dtype: torch.dtype | None = None,
) -> Projected:
    """Compute `token_logps` of the logits hidden (N, H) @ weight (V, H)^T without storing all logits.

    Logits exist for at most `chunk` rows at a time. Forward also computes the gradient of each log-prob with respect to
    its hidden state, up to the incoming gradient, which backward multiplies in. So nothing of size V is kept, at no
    extra work. If the weight is trained, backward needs the logits again. It recomputes them, unless products are in
    the weight's own dtype and there are at most `kept_logits` logits: then they are kept. Fold a head's logit scale
    into the temperature. For a head with a bias or a soft cap, use `token_logps`.

    Args:
        dtype: dtype of the matrix products, as with autocast; None means the weight's dtype. Sums over chunks are in
            the weight's dtype.
    """
    how = _How(temperature, chunk, with_entropy, with_correct, weight.dtype if dtype is None else dtype)
    weight_learns = torch.is_grad_enabled() and weight.requires_grad
    if weight_learns and how.dtype == weight.dtype and len(tokens) * len(weight) <= kept_logits:
        logits = F.linear(hidden.to(weight.dtype), weight)
        seen = logits.detach()
        return Projected(
            token_logps(logits, tokens, temperature),
            torch.cat([entropy(part, temperature) for part in seen.split(chunk)]) if with_entropy else None,
            seen.argmax(-1) == tokens if with_correct else None,
        )
    if weight_learns or (torch.is_grad_enabled() and hidden.requires_grad):
        logps, entropies, correct = _ProjectedLogps.apply(hidden, weight, tokens, how)
    else:
        logps, entropies, correct, _ = _forward(hidden, weight.to(how.dtype), tokens, how, False)
    return Projected(logps, entropies if with_entropy else None, correct if with_correct else None)


def _forward(
    hidden: Tensor, weight: Tensor, tokens: Tensor, how: _How, slopes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and hits (N,), and the log-probs' gradients with respect to hidden states (N, H).

    Entropies, hits and gradients are empty if `how` and `slopes` do not ask for them.
    """
    logps = torch.empty(len(tokens), device=hidden.device)
    entropies = torch.empty_like(logps) if how.with_entropy else logps.new_empty(0)
    correct = torch.empty_like(tokens if how.with_correct else tokens[:0], dtype=torch.bool)
    gradients = torch.empty_like(hidden) if slopes else hidden.new_empty(0)
    for rows in _chunks(len(tokens), how.chunk):
        chosen = tokens[rows, None]
        logs = _log_softmax(hidden[rows], weight, how.temperature)
        logps[rows] = logs.gather(1, chosen).squeeze(1)
        if how.with_correct:
            correct[rows] = logs.argmax(1) == tokens[rows]
        if not (how.with_entropy or slopes):
            continue
        if how.with_entropy:
            probabilities = logs.exp()
            entropies[rows] = -(probabilities * logs).sum(-1)
        else:
            probabilities = logs.exp_()
        if slopes:
            # d log p(token) / d h = (w_token - sum_v p_v w_v) / T
            expected = torch.mm(probabilities.to(weight.dtype), weight)
            gradients[rows] = ((weight[chosen.squeeze(1)] - expected) / how.temperature).to(hidden.dtype)
    return logps, entropies, correct, gradients


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = F.linear(hidden.to(weight.dtype), weight).float()
    return torch.log_softmax(logits / temperature if temperature != 1 else logits, -1)


def _chunks(rows: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, rows, chunk)]


class _ProjectedLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, how: _How) -> tuple[Tensor, Tensor, Tensor]:
        logps, entropies, correct, slopes = _forward(hidden, weight.to(how.dtype), tokens, how, ctx.needs_input_grad[0])
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(slopes, *((hidden, weight, tokens) if learns else ()))
        ctx.how = how
        ctx.mark_non_differentiable(entropies, correct)
        return logps, entropies, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        slopes, *learning = ctx.saved_tensors
        grad_hidden = slopes * grad[:, None].to(slopes.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            (hidden, weight, tokens), how = learning, ctx.how
            grad_weight, multiplied = torch.zeros_like(weight), weight.to(how.dtype)
            for rows in _chunks(len(tokens), how.chunk):
                # d log p(token) / d w_v = (1[v is token] - p_v) h / T, times the incoming gradient
                scale = grad[rows, None] / how.temperature
                logits_grad = _log_softmax(hidden[rows], multiplied, how.temperature).exp_().mul_(-scale)
                logits_grad.scatter_add_(1, tokens[rows, None], scale)
                left, right = logits_grad.to(how.dtype).t(), hidden[rows].to(how.dtype)
                if how.dtype == weight.dtype:
                    grad_weight.addmm_(left, right)
                else:
                    grad_weight += left @ right
        return grad_hidden, grad_weight, None, None


# ---- rows ------------------------------------------------------------------------------------------------------------


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Put values (N,) at the N True places of mask (B, T) in row order, 0 elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
