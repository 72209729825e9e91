"""Attention over rows of unequal length that stand behind one another, without the padding between them.

Registered with transformers under the name `RAGGED`: a model that is set to it runs everything but attention on the
tokens that are there, (1, N) instead of (R, T), and attention row by row with each row's own mask. Calls that do not
say how long the rows are, as generation's, get torch's own attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

RAGGED = "prefloop_ragged"


def ragged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of query, key and value (1, heads, N, D) to (1, N, heads, D).

    Args:
        attention_mask: (R, 1, T, T), True where a token of a row sees another; only the first of each row count.
        row_lengths: tokens of each row, R numbers that sum up to N.
    """
    if row_lengths is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    assert attention_mask is not None
    rows = zip(*(states.split(list(row_lengths), dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, q, k, v, attention_mask[row : row + 1, :, :length, :length], **kwargs)[0]
        for row, ((q, k, v), length) in enumerate(zip(rows, row_lengths, strict=True))
    ]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(RAGGED, ragged_attention)
AttentionMaskInterface.register(RAGGED, sdpa_mask)
