"""Run a language model on packed rows and return outputs for completion tokens only. Every recipe uses this module."""

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

# Errors that a model raises if it does not accept its inputs.
FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, LookupError, AssertionError)
# Attribute of a causal LM whose logits need the architecture's own code; its value is the type of the trunk's output.
OWN_LOGITS = "prefloop_own_logits"


def causal_of(model: Any) -> Any:
    """Return the transformers model, with any adapters inside it, of a plain or peft model."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trunk_of(model: Any) -> Any:
    """Return the decoder without head, with any adapters inside it, of a plain or peft causal LM or classifier."""
    return causal_of(model).base_model


def hidden_states(trunk: Any, packed: Packed, layers: Sequence[int] = ()) -> Tensor:
    """Return the last hidden states (R * T, H) by flat place, after the final norm.

    With `layers`, return the states of these L layers instead, (R * T, L, H). Layers count from 1; states of the last
    layer are after the final norm. Values are meaningless at padding, and in later groups at the tokens of the common
    start.
    """
    ids, positions = packed.input_ids, packed.position_ids
    ragged = packed.ragged() if trunk.config._attn_implementation == RAGGED else None
    # Sequences that share no prompt are padded on the right. Causal attention never reaches the padding and positions
    # are 0, 1, 2..., so no mask is needed, and attention without a mask uses faster kernels.
    places: dict[str, Any] = {}
    if ragged is not None:
        ids, positions = (tensor.flatten()[ragged.places][None] for tensor in (ids, positions))
        mask = ids.new_ones(1, 1, 1, 1, dtype=torch.bool)  # unused, but keeps the trunk from making an N * N mask
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
    """Return a causal LM's head, the factor of its logits (1 for most architectures) and their soft cap or None."""
    causal = causal_of(model)
    config = causal.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return causal.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None)


def vocabulary_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return fp32 logits (..., V) for hidden states (..., H), with the scaling and soft cap of the architecture."""
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
    """Compute logits (N, V) with the architecture's own code, whose trunk is replaced by hidden states (N, H)."""
    trunk, ids = causal.base_model, torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    trunk.forward = lambda *_, **__: output(last_hidden_state=hidden[None])
    try:
        return causal(input_ids=ids, use_cache=False).logits[0]
    finally:
        del trunk.forward


@torch.no_grad()
def check_logits(model: Any) -> None:
    """Test on the model itself whether `head_of` covers everything that the architecture does to compute logits.

    If not, `vocabulary_logits` runs the architecture's own code from now on, which takes more memory.

    Raises:
        ModelUnavailable: the architecture's own code gives different logits too.
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
        entropy: (N,) in nats, without gradient; None unless requested.
        hidden: (N, H) the hidden states that predict the tokens.
        correct: (N,) whether the token was the most likely token; None unless requested.
    """

    logps: Tensor
    entropy: Tensor | None
    hidden: Tensor
    correct: Tensor | None = None


def completion_outputs(
    model: Any, packed: Packed, temperature: float = 1.0, entropies: bool = False, accuracy: bool = False
) -> TokenOutputs:
    """Run one forward pass.

    The vocabulary projection, a fifth of a small model's work, runs only on positions that predict completion tokens.
    """
    # Not [...]: its backward would sum the gradients of completions that share a prompt in thread order, not row order.
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
    """A causal LM to train. Call it only through `forward`, as distributed and sharded training require.

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
    """Return whether a trunk handles packed rows: completions that share one prompt, and several groups in a row.

    The test runs on the model itself. It detects attention that ignores the mask, recurrent layers and other kinds of
    positions. It cannot detect attention that skips tokens only beyond the test's length (sliding windows, top-k
    indices), so for a model with such layers the answer is False. On a CPU, where it is faster, the model is switched
    to attention without padding if it supports it.
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
            if is_out_of_memory(failure):  # not the model's fault
                raise
            continue
        if bool((alone - together).abs().max() <= (1e-4 if precise else 5e-2) * alone.abs().max()):
            return True
    log.warning("%s does not read shared prompts right; every response is read with its own.", config.model_type)
    return False


def _sequences(vocabulary: int) -> list[TokenSequence]:
    """Return test groups with one or more completions, whose prompts have a common start."""
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
