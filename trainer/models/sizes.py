"""Batch sizes for forward passes and sampling, chosen at the start of a run by device, memory and model shape.

Larger sizes use a device better, until its cores are busy or its memory is full. Results depend on them only by
rounding. A size in the spec takes precedence. The result names the chosen sizes, so that a run can be repeated.

The sizes for two cores were measured on the default model (docs/training.md). Other devices get larger sizes in
proportion to what keeps them busy, as long as they fit.
"""

import functools
from typing import Any, NamedTuple

import torch

from app.specs import ModelRef, Optimiser
from trainer.models.loading import load_config
from trainer.processes import accelerator, device, the_main_processes
from trainer.speed.memory import memory_in_all
from trainer.speed.precision import computes_in

# Activations that a layer keeps per token for backward, in hidden sizes: 17 (Korthikanti et al. 2022) plus adapters'.
KEPT = 20
BYTES_TO_LEARN = 20  # per trained weight: the weight, its gradient, AdamW's two moments, and the reference's copy
CONTEXT = 512  # assumed tokens per sequence in the KV cache when sampling


class Machine(NamedTuple):
    """Resources of one process: device type, bytes of memory (of the accelerator if there is one), CPU cores."""

    device: str
    memory: int
    cores: int


class Shape(NamedTuple):
    """The dimensions that determine a model's memory use.

    Attributes:
        cached: elements that a layer keeps per token in the KV cache.
        itemsize: bytes per element.
    """

    hidden: int
    layers: int
    vocabulary: int
    cached: int
    itemsize: int

    @property
    def weights(self) -> int:
        """Approximate number of weights: 12 H^2 per layer, plus the embeddings."""
        return 12 * self.layers * self.hidden**2 + self.vocabulary * self.hidden


class Sizes(NamedTuple):
    """Batch sizes of a run.

    Attributes:
        microbatch_tokens: tokens per forward pass with gradients.
        forward_tokens: tokens per forward pass without gradients.
        batch_size: sequences generated together for labeling or evaluation.
        rollout_batch_size: sequences generated together for training.
    """

    microbatch_tokens: int
    forward_tokens: int
    batch_size: int
    rollout_batch_size: int

    def fill(self, settings: Optimiser) -> Optimiser:
        """Return the settings with `microbatch_tokens` filled in if it is None."""
        if settings.microbatch_tokens is not None:
            return settings
        return settings.model_copy(update={"microbatch_tokens": self.microbatch_tokens})


def choose(machine: Machine, shape: Shape, full_weights: bool = False) -> Sizes:
    """Choose the largest useful sizes that fit into memory: powers of two, halved until they fit.

    Activations for backward may take half of the memory that the weights leave free, and so may the KV cache. The
    activations of a single layer without gradients may take a sixteenth.

    Args:
        full_weights: all weights are trained, not only an adapter.
    """
    cores = _power_of_two(machine.cores)
    if machine.device == "cpu":
        wanted = Sizes(*(min(max(a_core * cores, least), most) for a_core, least, most in CPU))
    else:
        wanted = ACCELERATOR
    frozen = machine.memory - shape.itemsize * shape.weights
    learning = machine.memory - BYTES_TO_LEARN * shape.weights if full_weights else frozen
    a_token = KEPT * shape.hidden * shape.itemsize
    a_sequence = CONTEXT * shape.layers * shape.cached * shape.itemsize
    return Sizes(
        _fitting(wanted.microbatch_tokens, shape.layers * a_token, learning // 2, 256),
        _fitting(wanted.forward_tokens, a_token, frozen // 16, 512),
        _fitting(wanted.batch_size, a_sequence, frozen // 2, 8),
        _fitting(wanted.rollout_batch_size, a_sequence, frozen // 2, 8),
    )


# For each field of `Sizes`: per core, minimum, maximum.
CPU = ((512, 1024, 8192), (1024, 2048, 16384), (16, 32, 256), (32, 64, 512))
ACCELERATOR = Sizes(16384, 32768, 256, 512)


def _power_of_two(number: int) -> int:
    """Return the largest power of two that is not larger than `number` (at least 1)."""
    return 1 << (max(1, number).bit_length() - 1)


def _fitting(wanted: int, bytes_each: int, room: int, least: int) -> int:
    while wanted > least and wanted * bytes_each > room:
        wanted //= 2
    return wanted


# ---- sizes for this process and a model ------------------------------------------------------------------------------


@functools.cache
def this_machine() -> Machine:
    """Return the resources of a process, measured once, before a model is loaded; all processes get the same answer."""

    def look() -> Machine:
        if device().type == "cuda":
            free, _ = torch.cuda.mem_get_info(device())
            return Machine("cuda", free, torch.get_num_threads())
        # Processes on one machine share its memory. Their placement is unknown, so assume that all run on this machine.
        return Machine(device().type, memory_in_all() // accelerator().num_processes, torch.get_num_threads())

    return the_main_processes(look)


def shape_of(config: Any, dtype: torch.dtype) -> Shape:
    """Return a language model's shape from its configuration and compute dtype."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    layers = getattr(text, "num_hidden_layers", None) or 1
    return Shape(text.hidden_size, layers, text.vocab_size, 2 * keys * width, dtype.itemsize)


def sizes_for(model: ModelRef, dtype: torch.dtype, full_weights: bool = False) -> Sizes:
    """Return the sizes for a run with this model. All processes of a run must call this, and all get the same result.

    Raises:
        ModelUnavailable: the model has no configuration.
    """
    return choose(this_machine(), shape_of(load_config(model.base), dtype), full_weights)


def forward_tokens(trunk: Any) -> int:
    """Return the tokens per forward pass without gradients for a loaded trunk."""
    return choose(this_machine(), shape_of(trunk.config, computes_in(trunk))).forward_tokens
