"""Packed rows against plain rows: packing must not change the results of each sequence alone, in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trainer.batching.chat import TokenSequence
from trainer.batching.packing import Packed, common_start, groups_of, pack, packed_length, token_parts, visible
from trainer.models.policy import Policy, can_share, completion_outputs, hidden_states, trunk_of
from trainer.speed.attention import RAGGED

EOS = 2
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}

Builder = Callable[[], Any]

SHARING: dict[str, Builder] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    # It has a table of absolute positions, so a wrong position gives another vector.
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_positions=128, n_embd=24, n_layer=2, n_head=4, initializer_range=0.3)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
}
ALONE: dict[str, Builder] = {
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)),
    "gemma2 with windows": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=6, sliding_window=6)),
    # Recurrent: it reads all earlier tokens, with or without a mask.
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=61, hidden_size=24, state_size=4, num_hidden_layers=2, initializer_range=0.3)
    ),
    # It computes distances from places in the row, with a mask of another shape.
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=24, n_layer=2, n_head=4)),
}


def built(name: str) -> Any:
    """A model with random weights in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return (SHARING | ALONE)[name]().double().eval()


def ids(count: int, seed: int) -> list[int]:
    """Return random tokens, including the end of the turn and the padding token."""
    return torch.randint(0, 61, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def group(prompt: int, *completions: int, seed: int = 0) -> list[TokenSequence]:
    """Return completions of these lengths after one prompt of this length; each ends its turn."""
    start = ids(prompt, seed)
    return [
        TokenSequence(start, [*ids(count - 1, 100 * seed + n), EOS] if count else [])
        for n, count in enumerate(completions)
    ]


BATCHES: dict[str, list[TokenSequence]] = {
    "odd lengths": [*group(5, 3, 7, seed=1), *group(1, 1, 2, seed=2), *group(11, 4, 1, seed=3)],
    "one": group(6, 5, seed=4),
    "one pair": group(6, 5, 2, seed=5),
    "k completions": [*group(4, 3, 1, 6, 2, 5, seed=6), *group(9, 2, 2, 2, 2, seed=7)],
    "empty completions": [*group(4, 0, 3, seed=8), *group(3, 2, 0, 2, seed=9), *group(7, 0, seed=10)],
    "a wide one": [
        *group(2, 1, 1, seed=11),
        *group(30, 9, 12, seed=12),
        *group(3, 2, 1, seed=13),
        *group(1, 1, seed=14),
    ],
    "single sequences": [*group(4, 3, seed=15), *group(4, 6, seed=16), *group(2, 1, seed=17), *group(9, 2, seed=18)],
    "equal completions": [TokenSequence([5, 6, 7], [8, EOS])] * 2,
}
# The common start of every prompt in a project.
BATCHES["one system prompt"] = [
    TokenSequence([*ids(6, 99), *prompt], completion)
    for prompt, completion in (*BATCHES["odd lengths"], *BATCHES["empty completions"], *BATCHES["single sequences"])
]


def plain_states(model: Any, sequences: Sequence[TokenSequence]) -> Tensor:
    """Return hidden states (N, H) before each completion token, computing every sequence alone."""
    states = []
    for prompt, completion in sequences:
        hidden = trunk_of(model)(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state[0]
        states.append(hidden[len(prompt) - 1 : len(prompt) + len(completion) - 1])
    return torch.cat(states)


def plain_logps(model: Any, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    """Return log-probs of each sequence's completion tokens, computing every sequence alone."""
    logps = []
    for prompt, completion in sequences:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        places = torch.arange(len(completion)) + len(prompt) - 1
        logps.append(logits[places, torch.tensor(completion, dtype=torch.long)])
    return logps


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "shared", "ragged"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SHARING)
def test_every_number_is_that_of_the_sequence_alone(name: str, batch: str, way: str) -> None:
    model, sequences = built(name), BATCHES[batch]
    if way == "ragged":
        assert can_share(trunk_of(model))
        assert model.config._attn_implementation == RAGGED
    packed = pack(sequences, EOS, way != "plain")
    with torch.no_grad():
        states = hidden_states(trunk_of(model), packed)[packed.predictors]
        outputs = completion_outputs(model, packed)
        alone = plain_logps(model, sequences)
        torch.testing.assert_close(states, plain_states(model, sequences), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs.logps, torch.cat(alone).float(), rtol=1e-4, atol=1e-5)
    sums = torch.stack([logps.sum() for logps in alone]).float()
    torch.testing.assert_close(packed.per_sequence(outputs.logps), sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "batch", ["odd lengths", "k completions", "empty completions", "a wide one", "one system prompt"]
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_are_those_of_the_sequences_alone(name: str, batch: str) -> None:
    model, sequences = built(name), BATCHES[batch]
    weights = torch.linspace(-1, 2, len(sequences), dtype=torch.float64)
    expected = gradients(model, sum(w * p.sum() for w, p in zip(weights, plain_logps(model, sequences), strict=True)))
    for way in ("plain", "shared", "ragged"):
        if way == "ragged":
            assert can_share(trunk_of(model))
        packed = pack(sequences, EOS, way != "plain")
        loss = (weights * packed.per_sequence(completion_outputs(model, packed).logps)).sum()
        for found, gradient in zip(gradients(model, loss), expected, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max() + 1))


@pytest.mark.parametrize("name", SHARING)
def test_what_reads_packed_rows_right_shares_prompts(name: str) -> None:
    assert Policy(built(name)).share


@pytest.mark.parametrize("name", ALONE)
def test_what_does_not_reads_every_sequence_in_a_row_of_its_own_and_right(name: str) -> None:
    model = built(name)
    assert not can_share(trunk_of(model))
    for batch in ("odd lengths", "empty completions", "a wide one"):
        packed = pack(BATCHES[batch], EOS, share=False)
        with torch.no_grad():
            states = hidden_states(trunk_of(model), packed)[packed.predictors]
            torch.testing.assert_close(states, plain_states(model, BATCHES[batch]), rtol=1e-6, atol=1e-6)


def test_a_window_falls_back_because_a_short_test_would_not_show_it() -> None:
    """Gemma's window of 4096 tokens is longer than a quick test, so the setting alone must decide."""
    config = Gemma2Config(**SHAPE, head_dim=6, sliding_window=4096)
    assert not can_share(trunk_of(Gemma2ForCausalLM(config)))
    assert can_share(trunk_of(Qwen2ForCausalLM(Qwen2Config(**SHAPE, sliding_window=64, use_sliding_window=False))))


def test_attention_that_looks_for_the_best_tokens_falls_back_because_a_short_test_would_not_show_it() -> None:
    """It attends to everything up to its limit of tokens, and uses its own mask beyond."""
    config = DeepseekV32Config(
        **SHAPE | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=64,
    )
    assert not can_share(trunk_of(DeepseekV32ForCausalLM(config)))


@pytest.mark.parametrize("way", ["shared", "ragged"])
def test_a_row_may_be_wider_than_the_model_reads(way: str) -> None:
    """Each sequence fits. A narrower row next to them has padding where the model has no positions left."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=4)).eval()
    if way == "ragged":
        assert can_share(trunk_of(model))
    sequences = [*group(6, 10, 9, 10, seed=1), *group(4, 12, seed=2)]
    packed = pack(sequences, EOS, share=True)
    assert packed.input_ids.shape == (2, 35)
    with torch.no_grad():
        found = completion_outputs(model, packed).logps
        torch.testing.assert_close(found, torch.cat(plain_logps(model, sequences)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_the_id_of_padding_does_not_matter(share: bool) -> None:
    model, sequences = built("gpt2"), BATCHES["a wide one"]
    with torch.no_grad():
        found = [completion_outputs(model, pack(sequences, pad_id, share)).logps for pad_id in (EOS, 0, 60)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("share", [False, True])
def test_neither_the_order_nor_the_company_matters(share: bool) -> None:
    model = built("llama")
    groups = [BATCHES["odd lengths"][:2], BATCHES["odd lengths"][2:4], BATCHES["k completions"][:5]]

    def sums(chosen: Sequence[int]) -> list[Tensor]:
        packed = pack([sequence for i in chosen for sequence in groups[i]], EOS, share)
        with torch.no_grad():
            outputs = packed.per_sequence(completion_outputs(model, packed).logps)
        return list(outputs.split([len(groups[i]) for i in chosen]))

    together, turned = sums([0, 1, 2]), sums([2, 0, 1])
    for i, place in ((0, 1), (1, 2), (2, 0)):
        torch.testing.assert_close(together[i], sums([i])[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[i], turned[place], rtol=1e-5, atol=1e-5)


# ---- the layout ------------------------------------------------------------------------------------------------------

A, B, C = [11, 12, 13], [21], [31, 32]  # prompts
SEQUENCES = [
    TokenSequence(A, [14, 15]),
    TokenSequence(A, [16]),
    TokenSequence(B, []),
    TokenSequence(B, [22, 23]),
    TokenSequence(C, [33]),
]


def places(packed: Packed) -> list[list[int]]:
    """Return the tokens at the flat places that predict, for each sequence."""
    flat = packed.input_ids.flatten()
    return [flat[packed.predictors[packed.owners == i]].tolist() for i in range(len(packed.ends))]


def test_shared_prompts_and_filled_rows_by_hand() -> None:
    packed = pack(SEQUENCES, 0, share=True)
    # Groups take 6, 3 and 3 tokens: the widest is a row, and the others share a row.
    assert packed.input_ids.tolist() == [[11, 12, 13, 14, 15, 16], [21, 22, 23, 31, 32, 33]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 0, 1, 2]]
    assert packed.predictors.tolist() == [2, 3, 2, 6, 7, 10]
    assert packed.targets.tolist() == [14, 15, 16, 22, 23, 33]
    assert packed.owners.tolist() == [0, 0, 1, 3, 3, 4]
    assert packed.ends.tolist() == [4, 5, 6, 8, 11]  # an empty completion ends with its prompt
    assert packed.lengths.tolist() == [2, 1, 0, 2, 1]
    assert packed.tokens == 12
    assert packed.attention_mask is not None
    assert packed.attention_mask[:, 0].int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 0],
            [1, 1, 1, 0, 0, 1],
        ],
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 1, 1, 0],
            [0, 0, 0, 1, 1, 1],
        ],
    ]


def test_without_padding_and_with_one_beginning_by_hand() -> None:
    prompts = [[7, 8, *A], [7, 8, *B], [7, 8, *C]]
    packed = pack(
        [
            TokenSequence(prompts[0], [14, 15]),
            TokenSequence(prompts[0], [16]),
            TokenSequence(prompts[1], [22, 23]),
            TokenSequence(prompts[2], [33]),
        ],
        0,
        share=True,
    )
    # Rows of eight, longest group first: 7 8 A 14 15 16 | 7 8 B 22 23 and padding | 7 8 C 33 and padding.
    ragged = packed.ragged()
    assert packed.common == ragged.common == 2
    assert packed.input_ids.flatten()[ragged.places].tolist() == [7, 8, *A, 14, 15, 16, *B, 22, 23, *C, 33]
    assert packed.position_ids.flatten()[ragged.places].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 2, 3, 4, 2, 3, 4]
    assert ragged.lengths == [8, 3, 3]
    first, *later = ragged.masks
    assert first is not None
    assert first[0, 0].int().tolist()[4:] == [
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0, 0, 1],
    ]
    for mask in later:  # the common start of all prompts, then the rest
        assert mask is not None
        assert mask[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_groups_that_causality_is_enough_for_have_no_mask() -> None:
    assert pack([TokenSequence(A, [1, 5]), TokenSequence(B, [1])], 0, share=True).ragged().masks == [None, None]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]], 2),
        ([[1, 2, 3], [1, 2, 3], [1, 2, 3, 4]], 2),  # the last token of a prompt predicts: it stays
        ([[1], [1, 2]], 0),
        ([[3, 1], [3, 2], [4, 1]], 0),
        ([[1, 2, 3]], 0),
        ([], 0),
    ],
)
def test_what_all_prompts_begin_with(prompts: list[list[int]], expected: int) -> None:
    assert common_start(prompts) == expected


def test_plain_rows_by_hand() -> None:
    packed = pack(SEQUENCES, 0, share=False)
    assert packed.input_ids.tolist() == [
        [11, 12, 13, 14, 15],
        [11, 12, 13, 16, 0],
        [21, 0, 0, 0, 0],
        [21, 22, 23, 0, 0],
        [31, 32, 33, 0, 0],
    ]
    assert packed.attention_mask is None
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 5  # padding too, so that rows do not look packed
    assert packed.predictors.tolist() == [2, 3, 7, 15, 16, 21]
    assert packed.ends.tolist() == [4, 8, 10, 17, 22]
    assert packed.per_sequence(torch.tensor([1.0, 2, 4, 8, 16, 32])).tolist() == [3, 4, 0, 24, 32]
    assert places(packed) == places(pack(SEQUENCES, 0, share=True)) == [[13, 14], [13], [], [21, 22], [32]]


def test_rows_that_hold_one_sequence_each_need_no_mask() -> None:
    assert pack([TokenSequence(A, [1]), TokenSequence(C, [1, 2])], 0, share=True).attention_mask is None
    assert pack([TokenSequence(A, [1, 5]), TokenSequence(B, [1])], 0, share=True).attention_mask is None
    assert pack([TokenSequence(A, [1, 5, 6]), *[TokenSequence(B, [1])] * 2], 0, share=True).attention_mask is not None


def test_the_longest_come_first_and_fill_the_first_row_with_room() -> None:
    # Widths 10, 6, 5, 4, 4, 1 in rows of 10: [10] [6 4] [5 4 1].
    widths = [4, 10, 1, 6, 4, 5]
    sequences = [TokenSequence([20 + i], [i] * (width - 1)) for i, width in enumerate(widths)]
    packed = pack(sequences, 0, share=True)
    assert [[row.tolist().index(20 + i) if 20 + i in row else None for row in packed.input_ids] for i in range(6)] == [
        [None, 6, None],
        [0, None, None],
        [None, None, 9],
        [None, 0, None],
        [None, None, 5],
        [None, None, 0],
    ]
    assert packed.tokens == 30


def test_padding_of_a_packed_row_sees_itself_and_nobody_sees_it() -> None:
    packed = pack([*group(3, 4, 2), *group(2, 2, 1, seed=1)], 0, share=True)
    assert packed.attention_mask is not None
    mask = packed.attention_mask[1, 0]
    assert mask.shape == (9, 9)
    assert mask[:5, 5:].sum() == 0
    assert mask[5:, :5].sum() == 0
    assert mask.any(-1).all()


def test_what_a_token_sees_is_its_prompt_and_itself() -> None:
    """Compare with the definition, token by token."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(-1, 3, (2, 17), generator=generator).sort(-1).values
    branches = torch.randint(0, 3, (2, 17), generator=generator)
    mask = visible(groups, branches)
    assert mask.shape == (2, 1, 17, 17)
    for row in range(2):
        for i in range(17):
            for j in range(17):
                sees = (
                    j <= i
                    and groups[row, i] == groups[row, j]
                    and (branches[row, j] == 0 or branches[row, j] == branches[row, i])
                )
                assert bool(mask[row, 0, i, j]) == sees


# ---- groups and parts ------------------------------------------------------------------------------------------------


def test_neighbours_with_one_prompt_stand_together_where_prompts_are_shared() -> None:
    sequences = [TokenSequence(A, [1]), TokenSequence(tuple(A), [2]), TokenSequence(B, [3]), TokenSequence(A, [4])]
    assert groups_of(sequences, share=True) == [[0, 1], [2], [3]]
    assert groups_of(sequences, share=False) == [[0], [1], [2], [3]]
    assert packed_length(sequences, share=True) == (3 + 1 + 1) + (1 + 1) + (3 + 1)
    assert packed_length(sequences, share=False) == 4 + 4 + 2 + 4
    assert packed_length([], share=True) == 0


def test_parts_keep_to_rows_and_tokens_and_hold_every_entry_once() -> None:
    lengths = [10, 60, 10, 500, 30, 10, 10]
    # Sorted by length, at most three entries and 50 tokens; a longer entry is alone.
    assert list(token_parts(range(7), lengths, rows=3, tokens=50)) == [[0, 2, 5], [6, 4], [1], [3]]
    assert list(token_parts([3, 0], lengths, rows=3, tokens=1000)) == [[0, 3]]
    assert list(token_parts([], lengths, rows=3, tokens=1000)) == []
