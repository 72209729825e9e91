"""Fast decoding: a cache whose rows can be reused for new prompts, packed weights, and draws without a sort.

Everything here works with transformers' own model code and gives the same results as without it, within float
tolerance. `trainer.sampling.generation.best_ways` tests this on each model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from trainer.models.policy import trunk_of
from trainer.speed.memory import memory_in_all
from trainer.speed.precision import computes_in

CACHE_BLOCK = 64  # spare positions added when a cache grows
DRAW_BLOCK = 256  # tokens per block: a draw picks the block first, then a token in it
PACKED_SHARE = 0.25  # maximum share of the machine's memory for packed copies of weights


# ---- the cache -------------------------------------------------------------------------------------------------------


class RoomyLayer(DynamicLayer):
    """A cache layer that writes into spare room instead of copying all positions at every token.

    `keys` and `values` are views (B, heads, T, D) of the columns in use; all rows end at the last column. Columns that
    no row needs any more are dropped on the left, and a row can be reused for another prompt.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rooms: tuple[Tensor, Tensor] | None = None
        self._start = self._end = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        length = key_states.shape[-2]
        if self._rooms is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._rooms = _room(key_states, length + CACHE_BLOCK), _room(value_states, length + CACHE_BLOCK)
        elif self._end + length > self._rooms[0].shape[-2]:
            self._move(lead=0, spare=length + CACHE_BLOCK)
        end = self._end + length
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, self._end : end] = states
        self._show(self._start, end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self._rooms is not None:
            self._rooms = self._rooms[0][beam_idx], self._rooms[1][beam_idx]
            self._show(self._start, self._end)

    def drop_columns(self, count: int) -> None:
        """Drop the leftmost columns."""
        self._show(self._start + count, self._end)

    def add_columns(self, count: int) -> None:
        """Add columns on the left, which the caller must mask; their values are finite."""
        if count > self._start:
            self._move(lead=count, spare=CACHE_BLOCK)
        self._show(self._start - count, self._end)

    def take_over(self, rows: Tensor, other: "RoomyLayer", owners: Tensor) -> None:
        """Copy row `owners[i]` of another layer, which must not be wider, into the last columns of row `rows[i]`."""
        assert self._rooms is not None
        begin = self._end - other.get_seq_length()
        for room, states in zip(self._rooms, (other.keys, other.values), strict=True):
            room[rows, :, begin : self._end] = states[owners]

    def _move(self, lead: int, spare: int) -> None:
        """Move the columns in use to column `lead`, with at least `spare` free columns after them."""
        assert self._rooms is not None
        length = self._end - self._start
        if self._start >= lead + spare and self._rooms[0].shape[-2] < 2 * (lead + length + spare):
            for room in self._rooms:
                room[:, :, lead : lead + length] = room[:, :, self._start : self._end].clone()
        else:
            rooms = tuple(_room(states, lead + length + spare) for states in (self.keys, self.values))
            for room, states in zip(rooms, (self.keys, self.values), strict=True):
                room[:, :, lead : lead + length] = states
            self._rooms = rooms[0], rooms[1]
        self._show(lead, lead + length)

    def _show(self, start: int, end: int) -> None:
        assert self._rooms is not None
        self._start, self._end = start, end
        self.keys, self.values = self._rooms[0][:, :, start:end], self._rooms[1][:, :, start:end]


def _room(states: Tensor, columns: int) -> Tensor:
    # Zeros instead of uninitialised memory: attention multiplies masked values by 0, which would keep a NaN.
    return states.new_zeros(*states.shape[:2], columns, states.shape[-1])


def new_cache(trunk: Any) -> Any:
    """Return the model's own kind of cache, with `RoomyLayer` for layers that hold the whole sequence."""
    cache = DynamicCache(config=trunk.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache


def is_roomy(cache: Any) -> bool:
    """Return whether rows of a cache can be reused: not with sliding windows or recurrent states."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)


# ---- packed weights --------------------------------------------------------------------------------------------------


class PackedLinears:
    """Copies of a model's linear weights, laid out for this CPU; inside `with packed:` the layers multiply by them.

    At the sizes of decoding, oneDNN multiplies packed weights 1.2 to 1.7 times as fast as plain ones. A copy is valid
    until the weights change. In fp32, adapters are merged into the copies. In bf16, rounding would lose small adapters,
    so they stay separate. There are no copies on accelerators, or if they would take too much memory.
    """

    def __init__(self, model: Any) -> None:
        self._forwards: list[tuple[nn.Module, Any]] = []
        dtype = computes_in(trunk_of(model))
        whole = model.get_base_model() if isinstance(model, PeftModel) else model
        layers = [layer for layer in _linears(whole, dtype is torch.float32) if "forward" not in vars(layer)]
        size = sum(dtype.itemsize * layer.weight.numel() for layer in layers)
        on_cpu = all(layer.weight.device.type == "cpu" for layer in layers)
        if on_cpu and torch.backends.mkldnn.is_available() and size <= PACKED_SHARE * memory_in_all():
            self._forwards = [(layer, _packed_forward(layer, dtype)) for layer in layers]

    def __len__(self) -> int:
        return len(self._forwards)

    def __enter__(self) -> None:
        for layer, forward in self._forwards:
            layer.forward = forward  # hides the class's method

    def __exit__(self, *error: object) -> None:
        for layer, _ in self._forwards:
            del layer.forward


def _linears(module: nn.Module, merge: bool) -> Iterator[Any]:
    """Yield linear layers; with `merge`, a layer and its adapter are one, unless it is more than a sum (DoRA)."""
    for child in module.children():
        if type(child) is nn.Linear or (merge and type(child) is LoraLinear and not child.lora_variant):
            yield child
        else:
            yield from _linears(child, merge)


def _packed_forward(layer: Any, dtype: torch.dtype) -> Any:
    base, weight = layer, layer.weight.detach()
    if isinstance(layer, LoraLinear):
        base = layer.get_base_layer()
        if not layer.disable_adapters and not layer.merged:
            own = [name for name in layer.active_adapters if name in layer.lora_A]
            weight = weight + sum(layer.get_delta_weight(name) for name in own)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
    bias = None if base.bias is None else base.bias.detach().to(dtype)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias, "none", [], "")

    return forward


# ---- draws -----------------------------------------------------------------------------------------------------------


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw tokens (B,) from softmax(logits / temperature), logits (B, V); return them and their log-probs (B,).

    Each row's token is the first token whose cumulative probability exceeds the row's number in `uniforms` (B,), which
    is in [0, 1). Sums are fp64: over a vocabulary of 100,000, the tail of an fp32 sum would lose tokens of probability
    below 6e-8.
    """
    count, vocabulary = logits.shape
    scaled = logits.float() / temperature
    top = scaled.amax(-1, keepdim=True)
    weights = scaled.new_zeros(count, -(-vocabulary // DRAW_BLOCK), DRAW_BLOCK)
    torch.sub(scaled, top, out=weights.view(count, -1)[:, :vocabulary])
    weights.view(count, -1)[:, :vocabulary].exp_()

    # Find the block first, then the token in it: a cumulative sum over all tokens would cost more than the softmax.
    cumulative = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    total = cumulative[:, -1]
    threshold = (uniforms * total)[:, None]
    block = torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[-1] - 1)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
    rows = torch.arange(count, device=logits.device)
    within = before + weights[rows, block[:, 0]].cumsum(-1, dtype=torch.float64)
    # Rounding must not select a position after the block's last possible token.
    last = torch.nextafter(within[:, -1:], torch.zeros_like(threshold))
    token = block * DRAW_BLOCK + torch.searchsorted(within, torch.minimum(threshold, last), right=True)
    token.clamp_(max=vocabulary - 1)  # matters only for NaN logits; the log-prob is then NaN too
    logps = scaled.gather(-1, token) - top - total.log()[:, None].float()
    return token[:, 0], logps[:, 0]
