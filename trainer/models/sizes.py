"""How much is forwarded or sampled at once: chosen when a run starts, by device, memory and the model's shape.

More at once uses a device better, until its cores are busy; memory bounds it. Results do not depend on it beyond
rounding. A spec that names a size keeps it; a result names what was chosen, so that a run can be repeated.

The numbers at two cores were measured on the default model (docs/training.md). Other devices get more in proportion to
what keeps them busy, as long as it fits.
"""

import functools
from typing import Any, NamedTuple

import torch

from app.specs import ModelRef, Optimiser
from trainer.models.loading import load_config
from trainer.processes import accelerator, device, the_main_processes
from trainer.speed.memory import memory_in_all
from trainer.speed.precision import computes_in

# Numbers that a layer keeps of a token for backward, in hidden sizes: 17 (Korthikanti et al. 2022), and adapters' own.
KEPT = 20
BYTES_TO_LEARN = 20  # of a weight that learns: itself, its gradient, AdamW's two moments, and the reference's copy
CONTEXT = 512  # tokens of a sequence whose keys and values are kept in sampling


class Machine(NamedTuple):
    """What one process may use: its device's type, bytes of memory (of the accelerator, where there is one), cores."""

    device: str
    memory: int
    cores: int


class Shape(NamedTuple):
    """What a model's memory depends on.

    Attributes:
        cached: numbers that a layer keeps of a token's keys and values in sampling.
        itemsize: bytes of a number.
    """

    hidden: int
    layers: int
    vocabulary: int
    cached: int
    itemsize: int

    @property
    def weights(self) -> int:
        """Numbers in all weights, about: 12 H^2 a layer, and the embeddings."""
        return 12 * self.layers * self.hidden**2 + self.vocabulary * self.hidden


class Sizes(NamedTuple):
    """What is done at once.

    Attributes:
        microbatch_tokens: tokens forwarded with gradients.
        forward_tokens: tokens forwarded without.
        batch_size: sequences generated together, for people to judge or to evaluate.
        rollout_batch_size: the same, to train on.
    """

    microbatch_tokens: int
    forward_tokens: int
    batch_size: int
    rollout_batch_size: int

    def fill(self, settings: Optimiser) -> Optimiser:
        """The settings with the microbatch's tokens, unless they are named there."""
        if settings.microbatch_tokens is not None:
            return settings
        return settings.model_copy(update={"microbatch_tokens": self.microbatch_tokens})


def choose(machine: Machine, shape: Shape, full_weights: bool = False) -> Sizes:
    """The largest sizes that the device can use and that fit: powers of two, halved until they do.

    What is kept for backward may take half of the memory that the weights leave, and so may keys and values; what
    passes through one layer, a sixteenth.

    Args:
        full_weights: all weights learn, not an adapter.
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


# For each of `Sizes`: a core, least, most.
CPU = ((512, 1024, 8192), (1024, 2048, 16384), (16, 32, 256), (32, 64, 512))
ACCELERATOR = Sizes(16384, 32768, 256, 512)


def _power_of_two(number: int) -> int:
    """The largest one that is no larger."""
    return 1 << (max(1, number).bit_length() - 1)


def _fitting(wanted: int, bytes_each: int, room: int, least: int) -> int:
    while wanted > least and wanted * bytes_each > room:
        wanted //= 2
    return wanted


# ---- of this process and a model -------------------------------------------------------------------------------------


@functools.cache
def this_machine() -> Machine:
    """What this process may use, as it was when first asked: before it loads a model. All processes get one answer."""

    def look() -> Machine:
        if device().type == "cuda":
            free, _ = torch.cuda.mem_get_info(device())
            return Machine("cuda", free, torch.get_num_threads())
        # Processes of one machine share its memory; which ones are on it is not known, so all are taken to be.
        return Machine(device().type, memory_in_all() // accelerator().num_processes, torch.get_num_threads())

    return the_main_processes(look)


def shape_of(config: Any, dtype: torch.dtype) -> Shape:
    """The shape of a language model, by its configuration and the dtype it computes in."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    layers = getattr(text, "num_hidden_layers", None) or 1
    return Shape(text.hidden_size, layers, text.vocab_size, 2 * keys * width, dtype.itemsize)


def sizes_for(model: ModelRef, dtype: torch.dtype, full_weights: bool = False) -> Sizes:
    """The sizes for a run with this model. All processes of a run must call it, and get the same.

    Raises:
        ModelUnavailable: the model has no configuration.
    """
    return choose(this_machine(), shape_of(load_config(model.base), dtype), full_weights)


def forward_tokens(trunk: Any) -> int:
    """Tokens to forward at once without gradients through a trunk that is loaded."""
    return choose(this_machine(), shape_of(trunk.config, computes_in(trunk))).forward_tokens
