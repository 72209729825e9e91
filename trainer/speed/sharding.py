"""FSDP2: every process holds its shard of weights, gradients and moments, and a full layer only while computing it.

It is enabled in the configuration of `accelerate launch` (docs/accelerate). torch's `fully_shard` is called directly on
both GPUs and CPUs, because accelerate shards only on GPUs. Weights are gathered before they are saved, so folders and
checkpoints are the same for any number of processes.
"""

import copy
import os

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from app.errors import InvalidInput
from trainer.speed.gradient_checkpointing import outermost_models

# Set by `accelerate launch`.
USE_FSDP, MIXED_PRECISION, COMPILER = "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"
OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "A parallelism_config",
}

# The only value of each setting that the recipes support; other settings do not affect `fully_shard`.
FSDP_SETTINGS = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


def wants_shards() -> bool:
    """Return whether this process was launched with an FSDP configuration."""
    return parse_flag_from_env(USE_FSDP)


def check_launch() -> None:
    """Raise InvalidInput if `accelerate launch` has settings that recipes do not support or decide themselves."""
    for variable, name in OTHER_WAYS.items():
        if parse_flag_from_env(variable):
            raise InvalidInput(f"{name} is not supported.", "Launch with one of the files in docs/accelerate.")
    if (precision := os.environ.get(MIXED_PRECISION, "no")) != "no":
        raise InvalidInput(
            f"The accelerate configuration says mixed_precision: {precision}, but the spec decides that.",
            'Say mixed_precision: "no" there, and optimiser.precision in the spec.',
        )
    if (backend := os.environ.get(COMPILER, "no")).lower() != "no":  # accelerate would switch TF32 on with it
        raise InvalidInput(
            f"The accelerate configuration says dynamo_backend: {backend}, but models are not compiled.",
            "Leave dynamo_config out of it.",
        )
    if not wants_shards():
        return
    for name, expected in FSDP_SETTINGS.items():
        if (value := os.environ.get(name, expected)).lower() != expected.lower():
            raise InvalidInput(
                f"The accelerate configuration says {name.lower()}: {value}.",
                f"Say {name.lower()}: {expected}; docs/training.md says what is possible.",
            )


def shard(module: nn.Module, device: torch.device, processes: int) -> None:
    """Shard a module in place: each transformer layer is gathered separately, the rest (embeddings, heads) together.

    Its parameters become DTensors. Create the optimiser afterwards, and call the module only through `forward`.
    """
    mesh = init_device_mesh(device.type, (processes,))
    layers = {name for model in outermost_models(module) for name in model._no_split_modules or ()}
    for layer in [m for m in module.modules() if type(m).__name__ in layers]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh)


def outline(module: nn.Module) -> nn.Module:
    """Copy a module with parameters that have shapes but no data; copy before sharding, and `fill` it afterwards."""
    memo = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, memo)


@torch.no_grad()
def fill(outline: nn.Module, sharded: nn.Module) -> None:
    """Fill an outline with the weights of the sharded module. All processes must call this; each gets all weights."""
    parameters = dict(sharded.named_parameters())
    for name, empty in list(outline.named_parameters()):
        full = nn.Parameter(whole(parameters[name].detach()), empty.requires_grad)
        torch.utils.swap_tensors(empty, full)  # in all its places: embeddings may also be the head


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from its shards; all processes must call this. A tensor without shards is returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shards_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, sharded like `like` and on its device."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor) or tensor.shape != like.shape:  # another shape: Adam's step counter
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
