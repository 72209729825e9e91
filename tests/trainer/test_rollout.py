"""Sampling: what it returns equals what plain transformers computes, and depends on neither batch nor padding."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from app.errors import InvalidInput
from app.specs import Lora, ModelRef, PromptRow
from tests.trainer.conftest import user
from trainer.data import ChatEncoder
from trainer.modeling import load_causal_lm, load_tokenizer
from trainer.reporting import RunCancelled
from trainer.rollout import Sampler, Sampling, _inverse_cdf, generate, sample_seed

EOS = 2
SHORT, MIDDLE, LONG = list(range(5, 9)), list(range(20, 30)), list(range(40, 70))
SEEDS = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> torch.nn.Module:
    return load_causal_lm(ModelRef(base=str(tiny_model)))


# Enough stop tokens that rows end all along: a tenth of the vocabulary.
STOPS = frozenset(range(2, 260, 10))


@torch.no_grad()
def plain_logps(model: torch.nn.Module, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    """By transformers alone: one unpadded forward pass without a cache."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0] / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(tokens)) + len(prompt) - 1, torch.tensor(tokens)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("prompts", [[SHORT, MIDDLE, LONG], [MIDDLE, MIDDLE[::-1], [*MIDDLE[1:], 3]]])
def test_log_probs_are_those_of_a_plain_forward_pass(
    model: torch.nn.Module, prompts: list[list[int]], temperature: float
) -> None:
    sampling = Sampling(100, temperature, STOPS)  # beyond one block of the cache
    rows = generate(model, prompts, SEEDS, sampling, pad_id=EOS)
    lengths = set()
    for prompt, samples in zip(prompts, rows, strict=True):
        assert len(samples) == 3
        for sample in samples:
            expected = plain_logps(model, prompt, sample.tokens, temperature)
            torch.testing.assert_close(torch.tensor(sample.logps), expected, atol=1e-5, rtol=1e-5)
            lengths.add(len(sample.tokens))
    assert len(lengths) > 3  # rows ended at different times: the batch was compacted on the way


def test_a_row_that_never_ends_crosses_blocks_of_the_cache(model: torch.nn.Module) -> None:
    samples = generate(model, [SHORT, LONG], [[1], [2]], Sampling(150, 1.0, frozenset({-1})), pad_id=EOS)
    for prompt, [sample] in zip([SHORT, LONG], samples, strict=True):
        assert len(sample.tokens) == 150
        assert not sample.finished
        expected = plain_logps(model, prompt, sample.tokens, 1.0)
        torch.testing.assert_close(torch.tensor(sample.logps), expected, atol=1e-5, rtol=1e-5)


def test_a_sample_made_again_alone_equals_the_one_from_a_batch(model: torch.nn.Module) -> None:
    sampling = Sampling(24, 1.0, STOPS)
    prompts = [SHORT, MIDDLE, LONG]
    batch = generate(model, prompts, SEEDS, sampling, pad_id=EOS)
    for prompt, seeds, samples in zip(prompts, SEEDS, batch, strict=True):
        for seed, sample in zip(seeds, samples, strict=True):
            [[again]] = generate(model, [prompt], [[seed]], sampling, pad_id=EOS)
            assert again.tokens == sample.tokens
            assert again.finished == sample.finished
            assert again.logps == pytest.approx(sample.logps, abs=1e-5)


def test_an_adapter_is_part_of_what_is_sampled_from(tiny_model: Path) -> None:
    model = load_causal_lm(ModelRef(base=str(tiny_model)), Lora(rank=4), trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    [[sample]] = generate(model, [SHORT], [[1]], Sampling(20, 1.0, frozenset({EOS})), pad_id=EOS)
    with_adapter = plain_logps(model, SHORT, sample.tokens, 1.0)
    torch.testing.assert_close(torch.tensor(sample.logps), with_adapter, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert (plain_logps(model, SHORT, sample.tokens, 1.0) - with_adapter).abs().max() > 0.1


def test_finished_means_a_stop_token_was_drawn(model: torch.nn.Module) -> None:
    [samples] = generate(model, [SHORT], [list(range(40))], Sampling(6, 1.0, STOPS), pad_id=EOS)
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        assert not STOPS & set(sample.tokens[:-1])
        assert sample.finished == (sample.tokens[-1] in STOPS)
        assert sample.finished or len(sample.tokens) == 6
        assert sample.body == (sample.tokens[:-1] if sample.finished else sample.tokens)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    uniforms = torch.tensor([0.0, 0.499, 0.501, 0.699, 0.701, 0.899, 0.901, 0.9999999])
    assert _inverse_cdf(logits.expand(8, 4), uniforms.double()).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert _inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64)).item() == 1


def test_first_tokens_of_many_samples_have_the_models_distribution(model: torch.nn.Module) -> None:
    count, temperature = 3000, 0.2
    seeds = [[sample_seed(0, 7, index) for index in range(count)]]
    [samples] = generate(model, [MIDDLE], seeds, Sampling(1, temperature, frozenset({EOS})), pad_id=EOS)
    drawn = Counter(sample.tokens[0] for sample in samples)
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([MIDDLE])).logits[0, -1] / temperature, -1)
    for token in probabilities.topk(10).indices.tolist():
        p = probabilities[token].item()
        assert abs(drawn[token] / count - p) < 4 * (p * (1 - p) / count) ** 0.5


def test_prompts_are_read_once_whatever_the_number_of_samples(model: torch.nn.Module) -> None:
    shapes = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: shapes.append(inputs[0].shape)
    )
    generate(model, [SHORT, LONG], [[1, 2, 3, 4], [5, 6, 7, 8]], Sampling(3, 1.0, frozenset({-1})), pad_id=EOS)
    handle.remove()
    assert [tuple(shape) for shape in shapes] == [(2, len(LONG)), (8, 1), (8, 1)]


def test_rows_that_ended_leave_the_batch(model: torch.nn.Module) -> None:
    sizes = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].shape[0])
    )
    rows = generate(model, [SHORT] * 4, [list(range(16))] * 4, Sampling(30, 1.0, STOPS), pad_id=EOS)
    handle.remove()
    useful = sum(len(sample.tokens) for row in rows for sample in row)
    assert sizes[1] <= 64
    assert sizes[-1] < 16
    assert sum(sizes[1:]) < useful / 0.75  # never less than three quarters of the rows run


def row(number: int, text: str) -> PromptRow:
    return PromptRow(id=number, messages=user(text))


def sampler(model: torch.nn.Module, tiny_model: Path, **changes: object) -> Sampler:
    encoder = ChatEncoder(load_tokenizer(str(tiny_model)), 128)
    return Sampler(model, encoder, **{"max_new_tokens": 8, "temperature": 1.0, "seed": 0, **changes})


def test_every_wanted_sample_comes_once_and_first_batches_are_small(model: torch.nn.Module, tiny_model: Path) -> None:
    wanted = [(row(i, "x" * (i % 7)), [0, 1, 3]) for i in range(20)]
    batches = list(sampler(model, tiny_model).respond(wanted, 24, torch.Generator().manual_seed(0), ramp=True))
    keys = [(response.row.id, response.sample_index) for batch in batches for response in batch]
    assert sorted(keys) == [(i, k) for i in range(20) for k in (0, 1, 3)]
    assert [len(batch) for batch in batches[:4]] == [6, 6, 6, 6]
    assert max(len(batch) for batch in batches) == 24


def test_batch_size_changes_nothing(model: torch.nn.Module, tiny_model: Path) -> None:
    wanted = [(row(i, "y" * (3 * i)), [0, 1]) for i in range(6)]
    texts = []
    for batch_size in (1, 4, 12):
        batches = sampler(model, tiny_model).respond(wanted, batch_size)
        texts.append({(r.row.id, r.sample_index): (r.text, r.seed) for batch in batches for r in batch})
    assert texts[0] == texts[1] == texts[2]
    assert len({seed for _, seed in texts[0].values()}) == 12


def test_a_prompt_that_is_too_long_loses_its_beginning(model: torch.nn.Module, tiny_model: Path) -> None:
    [[response]] = sampler(model, tiny_model).respond([(row(1, "a" * 500), [0])], 4)
    assert len(response.prompt) == 120
    encoder = ChatEncoder(load_tokenizer(str(tiny_model)), 128)
    assert response.prompt == encoder.prompt(user("a" * 500))[-120:]


def test_no_room_for_a_prompt_is_refused(model: torch.nn.Module, tiny_model: Path) -> None:
    with pytest.raises(InvalidInput, match="no room for a prompt"):
        sampler(model, tiny_model, max_new_tokens=128)


def test_a_cancelled_run_ends_in_the_middle_of_a_batch(model: torch.nn.Module, tiny_model: Path) -> None:
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise RunCancelled("Cancelled.")

    with pytest.raises(RunCancelled):
        list(sampler(model, tiny_model, max_new_tokens=64, tick=tick).respond([(row(1, "a"), range(4))], 4))
    assert len(ticks) == 3
