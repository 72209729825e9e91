"""Gradient checkpointing: activations are computed a second time in the backward pass instead of being kept.

transformers recomputes a layer when its `training` flag is set, and the same flag lets its attention drop out and its
cache go. So the flag is set on the layers alone, not on what is inside them, and only while the module that is trained
runs forward: log-probs measured in between, and sampling with a cache, are left as they are.
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
    """Makes every forward pass of `module` that needs gradients keep the layers' inputs only.

    Raises:
        InvalidInput: the architecture cannot.
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
        model.disable_input_require_grads()  # what reentrant checkpointing would need
        layers += [layer for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)]
    for layer in layers:
        for name, value in vars(layer).items():
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)  # what a layer would drop itself, now that its flag says training

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
    """Those of a layer's two passes. The second must multiply as the first did, which has its own (`hidden_states`)."""
    return nullcontext(), fast_products(trunk)


def outermost_models(module: nn.Module) -> list[PreTrainedModel]:
    """The transformers models a module holds, none of which is part of another."""
    if isinstance(module, PreTrainedModel):
        return [module]
    return [model for child in module.children() for model in outermost_models(child)]
