"""Choose bf16 or fp32 by a measurement on the device, because either can be more than ten times as fast as the other.

With bf16, frozen weights are stored in bf16 and matrix products are computed in bf16 (autocast). Trained weights stay
fp32, because bf16 would round small steps away. Log-probs are always fp32.
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

# bf16 must be this many times as fast as fp32 to be chosen: it needs conversions between products and loses precision.
FACTOR = 1.5
# Below this hidden size, matrix products take little of a model's time, so fp32 is used without a measurement.
SMALLEST_HIDDEN_SIZE = 256
_REPEATS = 5
_SECONDS = 0.08  # for all repeats


class Rates(NamedTuple):
    """Speed of matrix products, in floating-point operations per second."""

    float32: float
    bfloat16: float


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 in hardware; without it, `auto` never chooses bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


@functools.cache
def measure(device: torch.device, hidden_size: int) -> Rates:
    """Measure products as wide as the model: medians of runs that alternate between the dtypes; takes under 0.1 s."""
    # On CPUs, a slice of a large model's width is enough for the decision and limits the time.
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
        torch.mm(left, right)  # warm-up: the first call chooses kernels
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
    """Return the spec's name of a dtype; in a spec, it repeats the measured choice."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def choose(precision: Precision, hidden_size: int, device: torch.device) -> torch.dtype:
    """Return the dtype of frozen weights and matrix products; `auto` measures it and logs the result."""
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
    """Store the dtype for matrix products on a model's trunk; see `autocast`."""
    trunk.compute_dtype = dtype  # type: ignore[assignment]


def computes_in(trunk: Any) -> torch.dtype:
    """Return the dtype of a trunk's matrix products: the stored one, else the dtype of its weights."""
    return getattr(trunk, "compute_dtype", None) or next(trunk.parameters()).dtype


def autocast(trunk: Any) -> AbstractContextManager[Any]:
    """Return the context for running a trunk and its head: autocast if bf16 was chosen, else an empty context."""
    dtype = computes_in(trunk)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(next(trunk.parameters()).device.type, dtype=dtype)
