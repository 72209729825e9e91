"""Interpolate between two policies: taking only part of a training step costs less KL than the whole step."""

import json
from pathlib import Path

import torch
from torch import nn

from app.specs import Lora, ModelRef
from trainer.models.inspection import ADAPTER_CONFIG
from trainer.models.loading import load_causal_lm


def policy_between(before: ModelRef, after: ModelRef, share: float, lora: Lora | None) -> nn.Module:
    """Return the policy at `share` of the way from `before` to `after`, in fp32.

    Args:
        before, after: policies on the same base, `after` trained from `before`. `before` may have no adapter, or an
            adapter of lower rank.
        share: 0 gives `before`, 1 gives `after`.
        lora: settings of the adapter of `after`; None if all weights were trained.
    """
    old, new = (load_causal_lm(model, lora, trainable=True, dtype=torch.float32) for model in (before, after))
    known, rank = dict(old.named_parameters()), rank_of(before)
    with torch.no_grad():
        for key, parameter in new.named_parameters():
            if parameter.requires_grad:
                # In `before`, the additional rows of A would meet zeros in B, so their values do not matter.
                known_rows = slice(rank) if "lora_A" in key else slice(None)
                parameter[known_rows] = known[key][known_rows].lerp(parameter[known_rows], share)
    return new


def rank_of(model: ModelRef) -> int:
    """Return the rank of a model's adapter, 0 without an adapter."""
    return json.loads((Path(model.adapter) / ADAPTER_CONFIG).read_text())["r"] if model.adapter else 0
