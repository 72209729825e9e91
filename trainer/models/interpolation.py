"""A policy that lies between two: a share of a training step, which costs less KL than the whole."""

import json
from pathlib import Path

import torch
from torch import nn

from app.specs import Lora, ModelRef
from trainer.models.inspection import ADAPTER_CONFIG
from trainer.models.loading import load_causal_lm


def policy_between(before: ModelRef, after: ModelRef, share: float, lora: Lora | None) -> nn.Module:
    """The policy that lies at a share of the way from one to another that was trained from it, in fp32.

    Args:
        before, after: with equal bases; `before` may have no adapter, or one of lower rank.
        share: 0 gives `before`, 1 gives `after`.
        lora: of `after`; none: all weights were trained.
    """
    old, new = (load_causal_lm(model, lora, trainable=True, dtype=torch.float32) for model in (before, after))
    known, rank = dict(old.named_parameters()), rank_of(before)
    with torch.no_grad():
        for key, parameter in new.named_parameters():
            if parameter.requires_grad:
                # Rows of A that `before` does not have stand beside zeros in its B: they can be any.
                known_rows = slice(rank) if "lora_A" in key else slice(None)
                parameter[known_rows] = known[key][known_rows].lerp(parameter[known_rows], share)
    return new


def rank_of(model: ModelRef) -> int:
    """The rank of a model's adapter, 0 without one."""
    return json.loads((Path(model.adapter) / ADAPTER_CONFIG).read_text())["r"] if model.adapter else 0
