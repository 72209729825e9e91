"""Gradient checkpointing: the backward pass recomputes activations instead of keeping them.

transformers recomputes a layer if its `training` flag is set, but the same flag enables dropout in attention and
disables the cache. So the flag is set only on the layers, not on modules inside them, and only during forward passes of
the trained module. Other uses of the model, such as measuring log-probs or sampling with a cache, are not affected.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.errors import InvalidInput
from trainer.speed.matmul import fast_products


def recompute_activations(module: nn.Module) -> None:
    """Make forward passes of `module` with gradients keep only the inputs of its layers.

    Raises:
        InvalidInput: the architecture does not support gradient checkpointing.
    """
    layers: list[nn.Module] = []
    for model in outermost_models(module):
        try:
            contexts = partial(_contexts, model.base_model)
            model.activation_checkpointing_enable(
                {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
            )
        except ValueError as error:
            raise InvalidInput(
                f"The architecture {model.config.model_type} cannot compute its activations twice.",
                "Switch gradient checkpointing off, and lower microbatch_tokens to save memory.",
            ) from error
        model.disable_input_require_grads()  # only reentrant checkpointing needs it
        layers += [layer for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)]
    for layer in layers:
        for name, value in vars(layer).items():
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)  # the layer's own dropout, which its training flag would enable

    def flag(training: bool) -> None:
        for layer in layers:
            layer.training = training

    def begin(*_: Any) -> None:
        flag(torch.is_grad_enabled())

    def end(*_: Any) -> None:
        flag(False)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end, always_call=True)


def _contexts(trunk: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a layer's forward pass and its recomputation.

    Both must use the same matrix products. `hidden_states` already sets the context of the forward pass.
    """
    return nullcontext(), fast_products(trunk)


def outermost_models(module: nn.Module) -> list[PreTrainedModel]:
    """Return the transformers models inside a module, without models that are part of another."""
    if isinstance(module, PreTrainedModel):
        return [module]
    return [model for child in module.children() for model in outermost_models(child)]
