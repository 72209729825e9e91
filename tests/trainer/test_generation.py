"""Sampling gives what plain transformers computes, and does not depend on batch, padding or shortcuts."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from trainer.models.loading import load_causal_lm
from trainer.reporting import TrainingDiverged
from trainer.sampling import decoding, generation
from trainer.sampling.decoding import PackedLinears, draw
from trainer.sampling.generation import Sample, Sampling, Ways, best_ways, generate
from trainer.sampling.responses import sample_seed
from trainer.speed import memory
from trainer.speed.memory import is_out_of_memory

EOS = 2
SHORT, MIDDLE, LONG = list(range(5, 9)), list(range(20, 30)), list(range(40, 70))
SEEDS = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
WAYS = [Ways(), Ways(refill=True), Ways(packed=True), Ways(refill=True, packed=True)]

# Enough stop tokens (a tenth of the vocabulary) that rows end all the time.
STOPS = frozenset(range(2, 260, 10))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> torch.nn.Module:
    return load_causal_lm(ModelRef(base=str(tiny_model)))


def sampled(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    rows: int = 1000,
    ways: Ways = Ways(),
) -> list[list[Sample]]:
    """Return the samples of each prompt; each prompt comes once."""
    done = [pair for batch in generate(model, prompts, seeds, sampling, EOS, rows, ways=ways) for pair in batch]
    assert sorted(number for number, _ in done) == list(range(len(prompts)))
    return [samples for _, samples in sorted(done, key=lambda pair: pair[0])]


@torch.no_grad()
def plain_logps(model: torch.nn.Module, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    """Return log-probs from transformers alone: one forward pass without padding and without a cache."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0] / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(tokens)) + len(prompt) - 1, torch.tensor(tokens)]


def assert_plain(
    model: torch.nn.Module, prompts: list[list[int]], samples: list[list[Sample]], temperature: float = 1.0
) -> None:
    for prompt, of_prompt in zip(prompts, samples, strict=True):
        for sample in of_prompt:
            expected = plain_logps(model, prompt, sample.tokens, temperature)
            torch.testing.assert_close(torch.tensor(sample.logps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("prompts", [[SHORT, MIDDLE, LONG], [MIDDLE, MIDDLE[::-1], [*MIDDLE[1:], 3]]])
def test_log_probs_are_those_of_a_plain_forward_pass(
    model: torch.nn.Module, prompts: list[list[int]], temperature: float, ways: Ways
) -> None:
    sampling = Sampling(100, temperature, STOPS)  # longer than one block of the cache
    samples = sampled(model, prompts, SEEDS, sampling, ways=ways)
    assert [len(of_prompt) for of_prompt in samples] == [3, 3, 3]
    assert_plain(model, prompts, samples, temperature)
    lengths = {len(sample.tokens) for of_prompt in samples for sample in of_prompt}
    assert len(lengths) > 3  # rows ended at different times, so the batch was compacted


# Long prompts come late, between short ones: the cache gets more columns on its left, and loses them again.
MANY = [SHORT, MIDDLE, SHORT[::-1], [9], LONG, MIDDLE[::-1], SHORT, [*LONG, *LONG], [8, 9], LONG[::-1], [7], MIDDLE] * 2
MANY_SEEDS = [[100 * i + j for j in range(1 + i % 3)] for i in range(len(MANY))]


@pytest.fixture(scope="module")
def alone(model: torch.nn.Module) -> list[list[Sample]]:
    return sampled(model, MANY, MANY_SEEDS, Sampling(150, 1.0, STOPS), rows=1)


@pytest.mark.parametrize("rows", [3, 8])
@pytest.mark.parametrize("ways", WAYS[1:])
def test_prompts_that_take_rows_over_are_sampled_as_alone(
    model: torch.nn.Module, alone: list[list[Sample]], ways: Ways, rows: int
) -> None:
    together = sampled(model, MANY, MANY_SEEDS, Sampling(150, 1.0, STOPS), rows, ways)
    assert [[s.tokens for s in of_prompt] for of_prompt in together] == [[s.tokens for s in of] for of in alone]
    assert_plain(model, MANY, together)


def test_a_batch_stays_full_while_prompts_wait(model: torch.nn.Module) -> None:
    shapes = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape))
    )
    prompts, seeds = [SHORT] * 40, [[10 * i + j for j in range(4)] for i in range(40)]
    samples = sampled(model, prompts, seeds, Sampling(40, 1.0, STOPS), 16, Ways(refill=True))
    handle.remove()
    decoded = sum(len(sample.tokens) - 1 for of_prompt in samples for sample in of_prompt)
    steps = [batch for batch, length in shapes if length == 1]
    assert max(steps) == 16
    assert decoded / sum(steps) > 0.75
    assert sum(batch for batch, length in shapes if length > 1) == 40  # each prompt was processed once


def test_the_cache_stays_as_wide_as_its_rows(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = []
    original = decoding._room

    def room(states: torch.Tensor, columns: int) -> torch.Tensor:
        rooms.append(columns)
        return original(states, columns)

    monkeypatch.setattr(decoding, "_room", room)
    prompts, seeds = [SHORT] * 120, [[i] for i in range(120)]
    samples = sampled(model, prompts, seeds, Sampling(40, 1.0, STOPS), 4, Ways(refill=True))
    steps = sum(len(of_prompt[0].tokens) for of_prompt in samples) / 4
    widest = len(SHORT) + 40 + 2 * decoding.CACHE_BLOCK
    assert steps > 1.4 * widest  # a cache that never drops columns on its left would have this many
    assert max(rooms) <= widest


@pytest.mark.parametrize("ways", WAYS)
def test_a_row_that_never_ends_crosses_blocks_of_the_cache(model: torch.nn.Module, ways: Ways) -> None:
    prompts = [SHORT, LONG]
    samples = sampled(model, prompts, [[1], [2]], Sampling(150, 1.0, frozenset({-1})), ways=ways)
    assert [(len(sample.tokens), sample.finished) for [sample] in samples] == [(150, False)] * 2
    assert_plain(model, prompts, samples)


def test_a_sample_made_again_alone_equals_the_one_from_a_batch(model: torch.nn.Module) -> None:
    sampling = Sampling(24, 1.0, STOPS)
    prompts = [SHORT, MIDDLE, LONG]
    batch = sampled(model, prompts, SEEDS, sampling, ways=Ways(refill=True, packed=True))
    for prompt, seeds, samples in zip(prompts, SEEDS, batch, strict=True):
        for seed, sample in zip(seeds, samples, strict=True):
            [[again]] = sampled(model, [prompt], [[seed]], sampling)
            assert again.tokens == sample.tokens
            assert again.finished == sample.finished
            assert again.logps == pytest.approx(sample.logps, abs=1e-5)


@pytest.fixture
def adapted(tiny_model: Path) -> torch.nn.Module:
    """A model in training mode whose adapter has an effect."""
    model = load_causal_lm(ModelRef(base=str(tiny_model)), Lora(rank=4), trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("ways", WAYS)
def test_an_adapter_is_part_of_what_is_sampled_from(adapted: torch.nn.Module, ways: Ways) -> None:
    sampling = Sampling(20, 1.0, frozenset({EOS}))
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    samples = sampled(adapted, [SHORT], [[1, 2]], sampling, ways=ways)
    assert_plain(adapted, [SHORT], samples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
    with adapted.disable_adapter():
        tokens = samples[0][0].tokens
        assert (plain_logps(adapted, SHORT, tokens, 1.0) - torch.tensor(samples[0][0].logps)).abs().max() > 0.1
        assert_plain(adapted, [SHORT], sampled(adapted, [SHORT], [[1, 2]], sampling, ways=ways))


def test_weights_that_have_changed_are_packed_anew(adapted: torch.nn.Module) -> None:
    ways = best_ways(adapted)
    assert ways == Ways(refill=True, packed=True)
    for _ in range(2):
        assert_plain(adapted, [SHORT], sampled(adapted, [SHORT], [[1]], Sampling(20, 1.0, STOPS), ways=ways))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)


def test_between_two_batches_the_model_is_as_it_was(model: torch.nn.Module) -> None:
    batches = generate(model, MANY, MANY_SEEDS, Sampling(9, 1.0, STOPS), EOS, 8, ways=Ways(refill=True, packed=True))
    assert len(PackedLinears(model)) == 2 * 7 + 1  # two layers with seven matrices each, and the vocabulary
    next(batches)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.is_grad_enabled()


def test_weights_are_packed_where_memory_allows(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies take at most a quarter of the container's memory limit; above the limit, the kernel kills the worker."""
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    size = sum(4 * weight.numel() for weight in linear)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CONTAINERS_LIMIT", limit)
    for written, packed in (("max\n", True), (f"{4 * size}\n", True), (f"{4 * size - 1}\n", False)):
        limit.write_text(written)
        assert len(PackedLinears(model)) == (len(linear) if packed else 0)
    limit.unlink()
    assert memory.memory_in_all() > 4 * size


def test_in_bf16_the_shortcuts_round_no_worse_than_the_plain_way(tiny_model: Path) -> None:
    for lora in (None, Lora(rank=4)):
        ref = ModelRef(base=str(tiny_model))
        model = load_causal_lm(ref, lora, trainable=lora is not None, dtype=torch.bfloat16)
        assert best_ways(model) == Ways(refill=True, packed=True)
        errors = []
        for ways in (Ways(), Ways(refill=True, packed=True)):
            samples = sampled(model, MANY[:12], MANY_SEEDS[:12], Sampling(12, 1.0, STOPS), 8, ways)
            errors += [
                (torch.tensor(sample.logps) - generation.plain_logps(model, prompt, sample.tokens)).abs().max()
                for prompt, of_prompt in zip(MANY[:12], samples, strict=True)
                for sample in of_prompt
            ]
        assert max(errors) < 0.1


# ---- what cannot take the shortcuts ----------------------------------------------------------------------------------


SMALL = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def with_large_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Make the weights so large that the output depends clearly on the input."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def test_sliding_windows_take_the_plain_way() -> None:
    """Rows of a sliding-window cache cannot be reused: it drops columns by their number, not by row."""
    config = MistralConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    assert_plain(model, MANY, sampled(model, MANY, MANY_SEEDS, Sampling(30, 1.0, STOPS), 8, best_ways(model)))


def test_another_architecture_takes_the_shortcuts() -> None:
    config = GemmaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
    )
    torch.manual_seed(0)
    model = GemmaForCausalLM(config).eval()
    assert best_ways(model) == Ways(refill=True, packed=True)
    assert_plain(model, MANY, sampled(model, MANY, MANY_SEEDS, Sampling(30, 1.0, STOPS), 8, best_ways(model)))


def test_a_model_with_recurrent_layers_is_sampled() -> None:
    """The state of its convolutions has no positions: its rows can be dropped, but not reused."""
    config = Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])
    torch.manual_seed(0)
    model = with_large_weights(Lfm2ForCausalLM(config))
    assert_plain(model, MANY, sampled(model, MANY, MANY_SEEDS, Sampling(30, 1.0, STOPS), 8, best_ways(model)))


def test_a_model_that_reads_padding_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompts are processed one at a time, each with all its samples."""
    torch.manual_seed(0)
    model = with_large_weights(Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])))
    trunk, forward = model.model, model.model.forward
    # The model now behaves as if it ignored the mask.
    monkeypatch.setattr(trunk, "forward", lambda *args, **named: forward(*args, **named | {"attention_mask": None}))
    assert best_ways(model) == Ways(together=False)
    assert_plain(model, MANY, sampled(model, MANY, MANY_SEEDS, Sampling(30, 1.0, STOPS), 8, best_ways(model)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_keeps_no_cache_is_refused(dtype: torch.dtype) -> None:
    """It returns its states under another name, so each token would be drawn as if it were the first."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2)
    model = with_large_weights(MambaForCausalLM(config)).to(dtype)
    with pytest.raises(ModelUnavailable, match=r"architecture mamba cannot be sampled here: .* differ by up to"):
        best_ways(model)


def test_rounding_of_large_logits_is_no_reason_to_refuse_a_model(tiny_model: Path) -> None:
    """GPT-2's logits are about -100, where bf16 numbers are half a nat apart, so kernels round differently."""
    model = load_causal_lm(ModelRef(base=str(tiny_model)), dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)

    def rounded(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return (logits.float() - 100 + torch.rand(logits.shape, generator=generator) / 2 - 0.25).bfloat16()

    model.lm_head.register_forward_hook(rounded)
    assert best_ways(model).refill


def test_a_shortcut_that_is_wrong_or_missing_is_not_taken(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = decoding._packed_forward

    def wrong(layer: torch.nn.Module, dtype: torch.dtype) -> object:
        forward = original(layer, dtype)
        return lambda x: forward(x) * 1.01

    def missing(layer: torch.nn.Module, dtype: torch.dtype) -> object:
        raise RuntimeError("no such operator")

    for broken, says in ((wrong, "differ by up to"), (missing, "no such operator")):
        monkeypatch.setattr(decoding, "_packed_forward", broken)
        with caplog.at_level(logging.WARNING):
            assert best_ways(model) == Ways(refill=True)
        assert says in caplog.text

    def misplaced(self: decoding.RoomyLayer, rows: torch.Tensor, other: object, owners: torch.Tensor) -> None:
        """A faulty version that does not copy the prompt."""

    monkeypatch.setattr(decoding.RoomyLayer, "take_over", misplaced)
    assert best_ways(model) == Ways()


@pytest.mark.parametrize("where", ["accelerator", "machine"])
def test_memory_that_runs_out_is_no_fault_of_the_model(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def full(*args: object) -> None:
        if where == "accelerator":
            raise torch.OutOfMemoryError
        torch.empty(2**55)

    monkeypatch.setattr(generation, "RunningBatch", full)
    with pytest.raises(RuntimeError) as raised:
        best_ways(model)
    assert is_out_of_memory(raised.value)
    assert not caplog.text


def test_an_adapter_that_is_more_than_a_sum_is_not_merged(tiny_model: Path) -> None:
    """DoRA also rescales the weight: a sum is right while the adapter is new, when it is tested, not after training."""
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(load_causal_lm(ModelRef(base=str(tiny_model))), config).eval()
    ways = best_ways(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    assert_plain(model, [SHORT], sampled(model, [SHORT], [[1, 2]], Sampling(20, 1.0, STOPS), ways=ways))


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_a_model_that_predicts_nan_is_named(tiny_model: Path) -> None:
    model = load_causal_lm(ModelRef(base=str(tiny_model)))
    model.model.norm.weight.fill_(torch.nan)
    for ways in (Ways(), Ways(refill=True, packed=True)):
        with pytest.raises(TrainingDiverged, match="predicts NaN"):
            sampled(model, [SHORT], [[1, 2]], Sampling(20, 1.0, STOPS), ways=ways)


def test_finished_means_a_stop_token_was_drawn(model: torch.nn.Module) -> None:
    [samples] = sampled(model, [SHORT], [list(range(40))], Sampling(6, 1.0, STOPS))
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        assert not STOPS & set(sample.tokens[:-1])
        assert sample.finished == (sample.tokens[-1] in STOPS)
        assert sample.finished or len(sample.tokens) == 6
        assert sample.body == (sample.tokens[:-1] if sample.finished else sample.tokens)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    uniforms = torch.tensor([0.0, 0.499, 0.501, 0.699, 0.701, 0.899, 0.901, 0.9999999]).double()
    tokens, logps = draw(logits.expand(8, 4), uniforms, 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert logps.tolist() == pytest.approx([logits[token].item() for token in tokens], abs=1e-6)


@pytest.mark.parametrize("vocabulary", [3, 256, 1000, 49152])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, vocabulary, generator=generator)
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    tokens, logps = draw(logits, uniforms, 0.7)
    probabilities = torch.softmax(logits.double() / 0.7, -1)
    cumulative = probabilities.cumsum(-1)
    rows = torch.arange(200)
    below = cumulative[rows, tokens] - probabilities[rows, tokens]
    assert (below <= uniforms + 1e-6).all()
    assert (uniforms <= cumulative[rows, tokens] + 1e-6).all()
    torch.testing.assert_close(logps.double(), probabilities[rows, tokens].log(), atol=1e-5, rtol=1e-5)


def test_impossible_tokens_are_never_drawn() -> None:
    for vocabulary in (3, 600):
        for possible in (1, vocabulary // 2, vocabulary - 2):
            logits = torch.full((1, vocabulary), -torch.inf)
            logits[0, possible] = 0.0
            for uniform in (0.0, 0.5, 1 - 2**-53):
                tokens, logps = draw(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)
                assert (tokens.item(), logps.item()) == (possible, 0.0)


def test_first_tokens_of_many_samples_have_the_models_distribution(model: torch.nn.Module) -> None:
    count, temperature = 3000, 0.2
    seeds = [[sample_seed(0, "sample", 7, index) for index in range(count)]]
    [samples] = sampled(model, [MIDDLE], seeds, Sampling(1, temperature, frozenset({EOS})), rows=8)
    drawn = Counter(sample.tokens[0] for sample in samples)
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([MIDDLE])).logits[0, -1] / temperature, -1)
    for token in probabilities.topk(10).indices.tolist():
        p = probabilities[token].item()
        assert abs(drawn[token] / count - p) < 4 * (p * (1 - p) / count) ** 0.5


# ---- the batch -------------------------------------------------------------------------------------------------------


def test_prompts_are_read_once_whatever_the_number_of_samples(model: torch.nn.Module) -> None:
    shapes = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: shapes.append(inputs[0].shape)
    )
    sampled(model, [SHORT, LONG], [[1, 2, 3, 4], [5, 6, 7, 8]], Sampling(3, 1.0, frozenset({-1})))
    handle.remove()
    assert [tuple(shape) for shape in shapes] == [(2, len(LONG)), (8, 1), (8, 1)]


@pytest.mark.parametrize("ways", WAYS)
def test_rows_that_ended_leave_a_batch_that_nobody_waits_for(model: torch.nn.Module, ways: Ways) -> None:
    sizes = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].shape[0])
    )
    samples = sampled(model, [SHORT] * 4, [list(range(16))] * 4, Sampling(30, 1.0, STOPS), ways=ways)
    handle.remove()
    useful = sum(len(sample.tokens) for of_prompt in samples for sample in of_prompt)
    assert sizes[1] <= 64
    assert sizes[-1] < 16
    assert sum(sizes[1:]) < useful / 0.75  # at least three quarters of the rows run
