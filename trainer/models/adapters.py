"""Continue training a policy's LoRA adapter with the rank and alpha of the spec.

An adapter adds s B A to a weight, with A (rank, in), B (out, rank) and s = alpha / rank (Hu et al. 2021). With a larger
rank or another alpha, the product s B A stays the same: A gets fresh rows, B gets columns of zeros, and the old part of
B is rescaled for the new s. The new rows are trained from the first step, as in a new adapter. A smaller rank is
refused, because it would lose some of what the adapter has learned.
"""

import copy
from pathlib import Path

from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn

from app.errors import InvalidInput
from app.specs import Lora


def continue_adapter(model: nn.Module, folder: Path, lora: Lora, name: str) -> PeftModel:
    """Load a stored adapter onto its base for training, with the rank and alpha of `lora`.

    The model computes the same function as before. The adapter keeps its set of layers.

    Args:
        name: the adapter's name in the model.

    Raises:
        InvalidInput: the adapter has a larger rank than `lora`, is not a LoRA adapter, or has layers with special ranks
            or parts.
        ValueError, OSError, LookupError: a file is damaged.
    """
    config = PeftConfig.from_pretrained(folder)
    if _is_as_asked(config, lora):
        return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=True)
    weights = load_peft_weights(str(folder), device="cpu")
    _require_exact(config, weights, folder, lora)
    wider = copy.deepcopy(config)
    wider.r, wider.lora_alpha, wider.inference_mode, wider.init_lora_weights = lora.rank, lora.alpha, False, True
    adapted = get_peft_model(model, wider, adapter_name=name)
    fresh = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    change = (config.lora_alpha / config.r) / (lora.alpha / lora.rank)
    for key, old in weights.items():
        whole = fresh[key] = fresh[key].clone()
        if key.endswith("lora_A.weight"):
            whole[: config.r] = old
        else:
            whole[:, : config.r] = change * old
    set_peft_model_state_dict(adapted, fresh, adapter_name=name)
    return adapted


def require_continuable(folder: Path, lora: Lora) -> None:
    """Raise the errors that `continue_adapter` would raise, without loading the base."""
    config = PeftConfig.from_pretrained(folder)
    if not _is_as_asked(config, lora):
        _require_exact(config, load_peft_weights(str(folder), device="cpu"), folder, lora)


def _is_as_asked(config: PeftConfig, lora: Lora) -> bool:
    return bool(config.peft_type == PeftType.LORA and (config.r, config.lora_alpha) == (lora.rank, lora.alpha))


def _require_exact(config: PeftConfig, weights: dict[str, Tensor], folder: Path, lora: Lora) -> None:
    if config.peft_type != PeftType.LORA:
        raise InvalidInput(
            f"The adapter {folder} is of the kind {config.peft_type.value}, so it cannot go on as LoRA.",
            "Choose another policy, or train full weights (lora: null): the adapter is then merged.",
        )
    if config.r > lora.rank:
        raise InvalidInput(
            f"The adapter {folder} has rank {config.r}; rank {lora.rank} cannot hold what it has learned.",
            f"Ask for rank {config.r} or more, or train full weights (lora: null).",
        )
    plain = not (config.rank_pattern or config.alpha_pattern or config.use_rslora)
    for key, weight in weights.items():
        sides = {"lora_A.weight": 0, "lora_B.weight": 1}  # the dimension that is the rank
        side = next((side for name, side in sides.items() if key.endswith(name)), None)
        plain = plain and side is not None and weight.shape[side] == config.r
    if not plain:
        raise InvalidInput(
            f"The adapter {folder} has layers with ranks or parts of their own, so its rank {config.r} and alpha "
            f"{config.lora_alpha} cannot become {lora.rank} and {lora.alpha}.",
            f"Ask for rank {config.r} and alpha {config.lora_alpha}, or train full weights (lora: null).",
        )
