"""fp32 matrix products of linear layers on CPUs through oneDNN: 1.1 to 1.25 times torch's own speed, same results.

torch multiplies fp32 matrices with MKL, which is slower on processors that are not from Intel. oneDNN is part of
torch. It takes plain weights, so no copies have to be stored or updated after a step.
"""

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from trainer.speed.precision import computes_in

# Below this number of multiplications, the call overhead is larger than the gain.
SMALLEST = 2**24


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (..., I) @ right (O, I)^T; both may be non-contiguous."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        return grad_x, grad_weight


def fast_products(trunk: Any, rows: int | None = None, widest: Tensor | None = None) -> AbstractContextManager[Any]:
    """Return the context for running `rows` tokens through a trunk: `FastProducts` if it helps, else an empty context.

    Inside a torch function mode, every torch call goes through the mode, which costs time. So the context is empty on
    accelerators, in bf16, without oneDNN, or if all products are small.

    Args:
        rows: number of tokens; None if it is unknown and may be large.
        widest: the largest weight that is multiplied; None means the largest weight of the trunk.
    """
    device = next(trunk.parameters()).device
    if device.type != "cpu" or computes_in(trunk) != torch.float32 or not multiplies_right():
        return contextlib.nullcontext()
    size = _widest(trunk) if widest is None else widest.numel()
    return FastProducts() if rows is None or rows * size >= SMALLEST else contextlib.nullcontext()


_SIZES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def _widest(trunk: nn.Module) -> int:
    """Return the size of the largest linear weight of a trunk; cached, because a trunk has thousands of modules."""
    if trunk not in _SIZES:
        _SIZES[trunk] = max((m.weight.numel() for m in trunk.modules() if isinstance(m, nn.Linear)), default=0)
    return _SIZES[trunk]


class FastProducts(TorchFunctionMode):
    """A context in which `F.linear` of large fp32 matrices on a CPU uses oneDNN; other calls are unchanged."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and _takes(*args):
            x, weight, *bias = args
            output = _Linear.apply(x, weight)
            return output + bias[0] if bias and bias[0] is not None else output
        return func(*args, **(kwargs or {}))


def _takes(x: Tensor, weight: Tensor, *_bias: Any) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * weight.shape[0] >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and multiplies_right()
    )


@functools.cache
def multiplies_right() -> bool:
    """Return whether this build of torch has these products and they equal torch's own, plain and transposed."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 65, generator=generator) for size in (37, 41))
    wanted = left @ right.t()
    try:
        found = [product(left, right), product(left, right.t().contiguous().t())]
    except (RuntimeError, AttributeError):
        return False
    return all(bool((way - wanted).abs().max() <= 1e-5 * wanted.abs().max()) for way in found)
