"""Several LoRA adapters on one model: add them, switch between them, merge them into one, read stored ones.

peft's own `set_adapter` freezes the adapters that it switches off, but the members of a reward model all train in
turns.
"""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftType, inject_adapter_in_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from app.errors import ModelUnavailable
from trainer.models.inspection import ADAPTER_WEIGHTS

PREFIX = "base_model.model."  # peft's prefix of names in a stored adapter


def put_on(model: nn.Module, config: LoraConfig, name: str) -> None:
    """Add a new trainable fp32 adapter to the model's layers in place.

    It does not change outputs until weights are read into it or it is trained.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, name)
    for parameter in parameters_of(model, name).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def parameters_of(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Return an adapter's parameters by the names that peft stores them under, without `PREFIX`."""
    end = f".{adapter}.weight"
    return {
        name.removesuffix(end) + ".weight": parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and name.endswith(end)
    }


def activate(model: nn.Module, adapters: Sequence[str]) -> None:
    """Make exactly these adapters active in the model; which parameters are trainable does not change."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = list(adapters)


def read(model: nn.Module, adapter: str, folder: Path, leave_out: Sequence[str] = ()) -> dict[str, Tensor]:
    """Load the weights of a peft folder into an adapter of the model.

    Returns:
        The tensors named in `leave_out`, which are not loaded.

    Raises:
        ModelUnavailable: the folder's tensors are not the adapter's.
    """
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    others = {name: stored.pop(name) for name in leave_out if name in stored}
    parameters = parameters_of(model, adapter)
    # An adapter of a language model may include its head; a reward model has no such head.
    strange = {name for name in stored.keys() - parameters.keys() if not name.startswith(("lm_head.", "embed_out."))}
    if strange or parameters.keys() - stored.keys():
        first = sorted(strange | (parameters.keys() - stored.keys()))[0]
        raise ModelUnavailable(
            f"The adapter {folder} does not fit its base: it holds other weights than are needed, first {first}.",
            "Train it again, or choose another one.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    return others


def require_sum(config: PeftConfig, folder: str) -> None:
    """Raise ModelUnavailable if an adapter does more than add low-rank matrices to weights."""
    more = (
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "target_parameters",
        "layer_replication",
        "trainable_token_indices",
    )
    if (
        config.peft_type != PeftType.LORA
        or getattr(config, "bias", "none") != "none"
        or any(getattr(config, name, None) for name in more)
    ):
        raise ModelUnavailable(
            f"The adapter {folder} does more than add low-rank matrices, so no other adapter can hold it.",
            "Train the reward model with all weights (without LoRA), or merge the adapter into its base first.",
        )


def joined(model: Any, adapters: Sequence[str]) -> tuple[dict[str, Tensor], LoraConfig]:
    """Merge adapters into one that adds their sum; return its tensors by stored name, and its configuration.

    The adapters' A matrices are stacked vertically and their B matrices side by side. B includes the adapters' scaling,
    so the merged adapter's own scaling is 1.

    Raises:
        ModelUnavailable: there are several adapters on a mixture of experts, whose weights are not plain matrices.
    """
    config: LoraConfig = copy.copy(model.peft_config[adapters[0]])
    if len(adapters) == 1:
        found = parameters_of(model, adapters[0])
        return {PREFIX + name: parameter.detach().cpu().contiguous() for name, parameter in found.items()}, config
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and any(adapter in layer.lora_A for adapter in adapters)
    }
    if any(isinstance(layer, ParamWrapper) for layer in layers.values()):
        raise ModelUnavailable(
            "Adapters of a mixture of experts cannot be joined into one.",
            "Train the reward model with all weights (without LoRA), or on the policy's base.",
        )
    ranks = [max(layer.r.get(adapter, 0) for layer in layers.values()) for adapter in adapters]
    tensors = {}
    for name, layer in layers.items():
        a = torch.zeros(sum(ranks), layer.in_features)
        b = torch.zeros(layer.out_features, sum(ranks))
        start = 0
        for adapter, rank in zip(adapters, ranks, strict=True):
            if adapter in layer.lora_A:
                used = slice(start, start + layer.r[adapter])
                a[used] = layer.lora_A[adapter].weight.detach().cpu()
                b[:, used] = (layer.lora_B[adapter].weight * layer.scaling[adapter]).detach().cpu()
            start += rank
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = a, b
    config.r = config.lora_alpha = sum(ranks)
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    return tensors, config
