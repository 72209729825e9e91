"""Attention over concatenated groups of unequal length, without padding between them.

It is registered with transformers under the name `RAGGED`. A model with this setting runs all layers on the existing
tokens only, (1, N) instead of (R, T), and computes attention group by group with each group's own mask. The common
start of all groups is stored once, and all groups attend to it. Calls without a `ragged` layout, as in generation, use
torch's own attention.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.batching.packing import Ragged

RAGGED = "prefloop_ragged"


def ragged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    ragged: Ragged | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention from query, key and value (1, heads, N, D); return (1, N, heads, D).

    Args:
        attention_mask: used only without `ragged`, which has its own masks.
        ragged: the layout of the N tokens.
    """
    if ragged is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    outputs: list[Tensor] = []
    common: list[Tensor] = []
    groups = zip(*(states.split(ragged.lengths, dim=2) for states in (query, key, value)), strict=True)
    for (q, *seen), mask in zip(groups, ragged.masks, strict=True):
        if not outputs:
            common = [states[:, :, : ragged.common] for states in seen]
        elif ragged.common:
            seen = [torch.cat(both, dim=2) for both in zip(common, seen, strict=True)]
        outputs.append(sdpa_attention_forward(module, q, *seen, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(RAGGED, ragged_attention)
AttentionMaskInterface.register(RAGGED, sdpa_mask)
