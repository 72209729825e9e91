"""Attention over groups of unequal length that stand behind one another, without the padding between them.

Registered with transformers under the name `RAGGED`: a model that is set to it runs everything but attention on the
tokens that are there, (1, N) instead of (R, T), and attention group by group with each group's own mask. What all
groups begin with is there once, and seen by all. Calls that do not say how the tokens lie, as generation's, get torch's
own attention.
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
    """Attention of query, key and value (1, heads, N, D) to (1, N, heads, D).

    Args:
        attention_mask: for calls without `ragged`, which has masks of its own.
        ragged: how the N tokens lie.
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
