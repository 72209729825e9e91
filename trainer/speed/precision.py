"""bf16 or fp32: measured on the device at hand, because processors differ by more than ten times either way.

Where bf16 is chosen, weights that stay frozen are held in it and matrix products are computed in it (autocast); weights
that learn stay fp32, or small steps would be rounded away, and log-probs are fp32 always.
"""

import contextlib
import functools
import logging
import time
from contextlib import AbstractContextManager
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from app.specs import Precision

log = logging.getLogger(__name__)

# How many times fp32's rate bf16 must reach: between the products everything is converted, and precision has its worth.
FACTOR = 1.5
# Below this hidden size a model's time does not go into matrix products, so nothing is measured: fp32.
SMALLEST_HIDDEN_SIZE = 256
_REPEATS = 5
_SECONDS = 0.08  # for all repeats


class Rates(NamedTuple):
    """Matrix products, in floating-point operations a second."""

    float32: float
    bfloat16: float


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; without it, measuring can only mislead."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


@functools.cache
def measure(device: torch.device, hidden_size: int) -> Rates:
    """The rates of products as wide as the model, medians of runs that alternate between the two; under 0.1 s."""
    # On CPUs a slice of a large model is enough to tell, and its time stays bounded.
    width, rows = (min(hidden_size, 1024), 128) if device.type == "cpu" else (hidden_size, 4096)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    operands = {
        dtype: (
            torch.ones(rows, width, dtype=dtype, device=device),
            torch.ones(width, width, dtype=dtype, device=device),
        )
        for dtype in seconds
    }
    for left, right in operands.values():
        torch.mm(left, right)  # the first one chooses kernels
    began = time.perf_counter()
    while len(seconds[torch.bfloat16]) < _REPEATS:
        for dtype, (left, right) in operands.items():
            _finish(device)
            started = time.perf_counter()
            torch.mm(left, right)
            _finish(device)
            seconds[dtype].append(time.perf_counter() - started)
        if time.perf_counter() - began > _SECONDS:
            break
    operations = 2 * rows * width * width
    return Rates(*(operations / median(seconds[dtype]) for dtype in (torch.float32, torch.bfloat16)))


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def name_of(dtype: torch.dtype) -> Precision:
    """What a spec calls a dtype: naming it there repeats what was measured."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def choose(precision: Precision, hidden_size: int, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights and matrix products; `auto` measures and says in the log what it saw."""
    if precision != "auto":
        return getattr(torch, precision)
    if hidden_size < SMALLEST_HIDDEN_SIZE:
        return torch.float32
    if not has_bfloat16(device):
        log.info("This %s does not multiply in bf16; computing in float32.", device.type)
        return torch.float32
    rates = measure(device, hidden_size)
    dtype = torch.bfloat16 if rates.bfloat16 >= FACTOR * rates.float32 else torch.float32
    log.info(
        "Matrix products on %s at hidden size %d: %.0f GFLOP/s in fp32, %.0f in bf16; computing in %s.",
        device.type,
        hidden_size,
        rates.float32 / 1e9,
        rates.bfloat16 / 1e9,
        name_of(dtype),
    )
    return dtype


def set_compute_dtype(trunk: nn.Module, dtype: torch.dtype) -> None:
    """Notes on a model's trunk what its products are to be computed in; see `autocast`."""
    trunk.compute_dtype = dtype  # type: ignore[assignment]


def computes_in(trunk: Any) -> torch.dtype:
    """What a trunk's products are computed in: what was noted, else what its weights are held in."""
    return getattr(trunk, "compute_dtype", None) or next(trunk.parameters()).dtype


def autocast(trunk: Any) -> AbstractContextManager[Any]:
    """The context in which a trunk and its head run: autocast where bf16 was chosen for it, else nothing."""
    dtype = computes_in(trunk)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(next(trunk.parameters()).device.type, dtype=dtype)
