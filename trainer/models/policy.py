"""A language model run on completions only, on rows that may share prompts: what every recipe calls."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from app.errors import ModelUnavailable
from trainer.algorithms.logprobs import entropy, projected_logps, token_logps
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import Packed, pack
from trainer.speed.attention import RAGGED
from trainer.speed.matmul import fast_products
from trainer.speed.memory import is_out_of_memory
from trainer.speed.precision import autocast, computes_in

log = logging.getLogger(__name__)

# What a model raises that does not take what it is given.
FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, LookupError, AssertionError)
OWN_LOGITS = "prefloop_own_logits"  # on a causal LM whose own code makes its logits: what its trunk returns


def causal_of(model: Any) -> Any:
    """The transformers model itself, adapters inside it included, of a plain or peft one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trunk_of(model: Any) -> Any:
    """The decoder without its head (adapters inside it included), of a plain or peft causal LM or classifier."""
    return causal_of(model).base_model


def hidden_states(trunk: Any, packed: Packed, layers: Sequence[int] = ()) -> Tensor:
    """Last hidden states (R * T, H) by flat place, after the final norm; with `layers` theirs, (R * T, L, H).

    Layers count from 1; the last one's states are those after the final norm. Meaningless at padding, and where later
    groups begin as the first one does.
    """
    ids, positions = packed.input_ids, packed.position_ids
    ragged = packed.ragged() if trunk.config._attn_implementation == RAGGED else None
    # Sequences that share no prompt are padded on the right. Causal attention never reaches the padding, positions are
    # 0, 1, 2..., and attention without a mask takes the faster kernels.
    places: dict[str, Any] = {}
    if ragged is not None:
        ids, positions = (tensor.flatten()[ragged.places][None] for tensor in (ids, positions))
        mask = ids.new_ones(1, 1, 1, 1, dtype=torch.bool)  # not looked at: with none, the trunk would make one of N * N
        places = {"attention_mask": mask, "position_ids": positions, "ragged": ragged}
    elif not packed.alone:
        places = {"attention_mask": packed.attention_mask, "position_ids": positions}
    with autocast(trunk), fast_products(trunk, ids.numel()):
        said = trunk(input_ids=ids, use_cache=False, output_hidden_states=bool(layers), **places)
    if layers:
        states = torch.stack([said.hidden_states[layer] for layer in layers], -2).flatten(0, 1)
    else:
        states = said.last_hidden_state.flatten(0, 1)
    if ragged is None:
        return states
    return states.new_zeros(packed.tokens, *states.shape[1:]).index_copy(0, ragged.places, states)


def head_of(model: Any) -> tuple[Any, float, float | None]:
    """A causal LM's head, what its logits are multiplied by, and their soft cap, as some architectures have them."""
    causal = causal_of(model)
    config = causal.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return causal.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None)


def vocabulary_logits(model: Any, hidden: Tensor) -> Tensor:
    """fp32 logits (..., V) of hidden states (..., H), with the scaling and capping some architectures put on top."""
    head, scale, cap = head_of(model)
    causal, trunk = causal_of(model), trunk_of(model)
    rows = hidden.numel() // hidden.shape[-1]
    with autocast(trunk), fast_products(trunk, rows, head.weight):
        if output := getattr(causal, OWN_LOGITS, None):
            return _own_logits(causal, hidden.flatten(0, -2), output).view(*hidden.shape[:-1], -1).float()
        logits = head(hidden).float()
    if scale != 1:  # Cohere, Granite
        logits = logits * scale
    return cap * torch.tanh(logits / cap) if cap else logits  # Gemma


def _own_logits(causal: Any, hidden: Tensor, output: Any) -> Tensor:
    """Logits (N, V) by the architecture's own code, which finds hidden states (N, H) where its trunk ran."""
    trunk, ids = causal.base_model, torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    trunk.forward = lambda *_, **__: output(last_hidden_state=hidden[None])
    try:
        return causal(input_ids=ids, use_cache=False).logits[0]
    finally:
        del trunk.forward


@torch.no_grad()
def check_logits(model: Any) -> None:
    """Tries on a causal LM itself whether `head_of` knows all that its architecture does to get logits.

    Where it does not, `vocabulary_logits` runs the architecture's own code from now on, which keeps more in memory.

    Raises:
        ModelUnavailable: that gives other logits too.
    """
    causal, trunk = causal_of(model), trunk_of(model)
    vocabulary, device = causal.config.get_text_config().vocab_size, next(causal.parameters()).device
    ids = torch.randint(0, vocabulary, (1, 6), generator=torch.Generator().manual_seed(0)).to(device)
    with autocast(trunk):
        wanted = causal(input_ids=ids, use_cache=False).logits.float()
        output = trunk(input_ids=ids, use_cache=False)
    precise = computes_in(trunk) == torch.float32
    for way in (None, type(output)):
        setattr(causal, OWN_LOGITS, way)
        found = vocabulary_logits(model, output.last_hidden_state)
        if bool((found - wanted).abs().max() <= (1e-4 if precise else 5e-2) * wanted.abs().max()):
            return
    raise ModelUnavailable(
        f"The architecture {causal.config.model_type} makes its logits in a way that is not known here.",
        "Choose a model of another architecture.",
    )


class TokenOutputs(NamedTuple):
    """Outputs for the N completion tokens of a packed batch.

    Attributes:
        logps: (N,) in fp32.
        entropy: (N,) in nats, without gradient, where asked for.
        hidden: (N, H) states before them.
        correct: (N,) whether the token was the likeliest one, where asked for.
    """

    logps: Tensor
    entropy: Tensor | None
    hidden: Tensor
    correct: Tensor | None = None


def completion_outputs(
    model: Any, packed: Packed, temperature: float = 1.0, entropies: bool = False, accuracy: bool = False
) -> TokenOutputs:
    """One forward pass. The vocabulary projection, a fifth of a small model's work, is run where it is needed only."""
    # Not [...]: its gradient adds up what several completions say of one prompt in the order of threads, not of rows.
    hidden = hidden_states(trunk_of(model), packed).index_select(0, packed.predictors)
    head, scale, cap = head_of(model)
    known = getattr(causal_of(model), OWN_LOGITS, None) is None
    plain = known and type(head) is nn.Linear and head.bias is None and cap is None
    if plain:
        trunk = trunk_of(model)
        with fast_products(trunk, len(hidden), head.weight):
            projected = projected_logps(
                hidden,
                head.weight,
                packed.targets,
                temperature / scale,
                with_entropy=entropies,
                with_correct=accuracy,
                dtype=computes_in(trunk),
            )
        return TokenOutputs(projected.logps, projected.entropy, hidden, projected.correct)
    logits = vocabulary_logits(model, hidden)
    logps = token_logps(logits, packed.targets, temperature)
    return TokenOutputs(
        logps,
        entropy(logits.detach(), temperature) if entropies else None,
        hidden,
        logits.detach().argmax(-1) == packed.targets if accuracy else None,
    )


class Policy(nn.Module):
    """A causal LM to be trained, run through `forward` only, as processes and shards need it.

    Attributes:
        causal: the language model, peft or plain.
        share: whether prompts may be shared in a row (see `can_share`).
    """

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal, self.share = causal, can_share(trunk_of(causal))

    def forward(
        self, packed: Packed, temperature: float = 1.0, entropies: bool = False, accuracy: bool = False
    ) -> TokenOutputs:
        return completion_outputs(self.causal, packed, temperature, entropies, accuracy)


def can_share(trunk: Any) -> bool:
    """Whether a trunk reads packed rows right: completions after one shared prompt, groups side by side in a row.

    Tried on the model itself. Attention that takes no such mask, recurrent layers and positions of another kind show;
    attention that leaves tokens out only beyond the test's length (windows, indices of the best) would not, so a model
    with such layers reads every sequence alone. On a CPU, where it pays, a model that takes it is set to attention
    without padding.
    """
    config = trunk.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if windowed or {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        return False
    before = trunk.config._attn_implementation
    if before == RAGGED:
        return True
    where, precise = next(trunk.parameters()).device, computes_in(trunk) == torch.float32
    ragged = [RAGGED] if before == "sdpa" and where.type == "cpu" else []
    sequences = _sequences(config.vocab_size)
    alone = _states(trunk, pack(sequences, 0, share=False).to(where))
    for implementation in (*ragged, before):
        trunk.config._attn_implementation = implementation
        try:
            together = _states(trunk, pack(sequences, 0, share=True).to(where))
        except FAILURES as failure:
            if is_out_of_memory(failure):  # no fault of the model's
                raise
            continue
        if bool((alone - together).abs().max() <= (1e-4 if precise else 5e-2) * alone.abs().max()):
            return True
    log.warning("%s does not read shared prompts right; every response is read with its own.", config.model_type)
    return False


def _sequences(vocabulary: int) -> list[TokenSequence]:
    """Groups with several completions and with one, whose prompts begin alike."""
    ids = torch.randint(0, vocabulary, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    a, b = ids[:7], [*ids[:2], *ids[7:10]]
    return [
        TokenSequence(a, ids[10:13]),
        TokenSequence(a, ids[13:18]),
        TokenSequence(b, ids[18:20]),
        TokenSequence(b, ids[20:23]),
        TokenSequence([*ids[:3], ids[23]], ids[5:8]),
    ]


@torch.no_grad()
def _states(trunk: Any, packed: Packed) -> Tensor:
    return hidden_states(trunk, packed)[packed.predictors].float()
