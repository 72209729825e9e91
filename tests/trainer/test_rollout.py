"""The sampler returns every wanted sample once, for any batch size; prompts that are too long; cancelling."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput
from app.rows import PromptRow
from app.specs import ModelRef
from tests.trainer.conftest import CHAT_TEMPLATE, user
from trainer.batching.chat import ChatEncoder
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.reporting import RunCancelled
from trainer.sampling.generation import Sample
from trainer.sampling.responses import Sampler, sample_seed


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> torch.nn.Module:
    return load_causal_lm(ModelRef(base=str(tiny_model)))


def row(number: int, text: str) -> PromptRow:
    return PromptRow(id=number, messages=user(text))


def sampler(model: torch.nn.Module, tiny_model: Path, **changes: object) -> Sampler:
    encoder = ChatEncoder(load_tokenizer(str(tiny_model)), 128)
    return Sampler(
        model, encoder, **{"max_new_tokens": 8, "temperature": 1.0, "seed": 0, "purpose": "sample", **changes}
    )


def test_every_wanted_sample_comes_once_with_those_of_its_prompt(model: torch.nn.Module, tiny_model: Path) -> None:
    wanted = [(row(i, "x" * (i % 7)), [0, 1, 3]) for i in range(20)]
    batches = list(sampler(model, tiny_model).respond(wanted, 24, torch.Generator().manual_seed(0)))
    keys = [(response.row.id, response.sample_index) for batch in batches for response in batch]
    assert sorted(keys) == [(i, k) for i in range(20) for k in (0, 1, 3)]
    assert len(batches) >= 3
    for batch in batches:
        counts = Counter(response.row.id for response in batch)
        assert set(counts.values()) == {3}


def test_a_prompt_is_handed_on_before_all_are_read(model: torch.nn.Module, tiny_model: Path) -> None:
    read = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape[0] if inputs[0].shape[1] > 1 else 0)
    )
    batches: Iterator[list] = sampler(model, tiny_model).respond([(row(i, "q"), [0, 1]) for i in range(30)], 8)
    read.clear()
    first = next(batches)
    handle.remove()
    assert 1 <= len(first) // 2 <= sum(read) < 30


def test_batch_size_changes_nothing(model: torch.nn.Module, tiny_model: Path) -> None:
    wanted = [(row(i, "y" * (3 * i)), [0, 1]) for i in range(6)]
    texts = []
    for batch_size in (1, 4, 12):
        batches = sampler(model, tiny_model).respond(wanted, batch_size)
        texts.append({(r.row.id, r.sample_index): (r.text, r.seed) for batch in batches for r in batch})
    assert texts[0] == texts[1] == texts[2]
    assert len({seed for _, seed in texts[0].values()}) == 12


def test_a_prompt_that_is_too_long_loses_its_middle(model: torch.nn.Module, tiny_model: Path) -> None:
    [[response]] = sampler(model, tiny_model).respond([(row(1, "a" * 250 + "z" * 250), [0])], 4)
    assert len(response.prompt) == 120
    # Of 120 tokens, the template takes 19 and the ellipsis takes 3.
    encoder = ChatEncoder(load_tokenizer(str(tiny_model)), 128)
    assert response.prompt == encoder.prompt(user("a" * 49 + "…" + "z" * 49))


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


def test_a_response_is_read_as_it_was_said(model: torch.nn.Module, tiny_model: Path) -> None:
    """Some tokenizers other than byte-pair ones remove spaces before punctuation when they decode."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<s>", "do", "n't", ".", "No", "?"])}, "<s>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<s>", chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=True
    )
    sampled = sampler(model, tiny_model)
    sampled.encoder = ChatEncoder(tokenizer, 128)
    assert sampled._text(Sample([1, 2, 3, 4, 5, 0], [], finished=True)) == "do n't . No ?"


def test_a_control_token_in_an_answer_is_seen(model: torch.nn.Module, tiny_model: Path) -> None:
    """The policy is trained on it. People and the reward model read its name as text, which does not end the turn."""
    sampled = sampler(model, tiny_model)
    encoder, tokenizer = sampled.encoder, sampled.encoder.tokenizer
    ids = [*encoder.completion("Yes", False), *tokenizer.convert_tokens_to_ids(["<|im_start|>"])]
    said = [*ids, *encoder.completion("user", finished=True)]
    text = sampled._text(Sample(said, [], finished=True))
    assert text == "Yes<|im_start|>user"
    assert sampled._text(Sample(said[:-1], [], finished=False)) == text
    read = encoder.completion(text)
    assert tokenizer.decode(read) == text + "<|im_end|>"
    assert len(read) == len(text) + 1  # a byte is a token, and the end of the turn is one token


def test_no_two_purposes_runs_prompts_or_places_share_a_seed() -> None:
    purposes = ("sample", "evaluate", "on_policy_dpo", "best_of_n", "ppo", "rloo", "grpo")
    numbers = (0, 1, 2, 11, 12, 112, 1_000_003)
    seeds = [
        sample_seed(seed, purpose, prompt_id, index)
        for purpose in purposes
        for seed in numbers
        for prompt_id in numbers
        for index in (-1, *numbers)
    ]
    assert len(set(seeds)) == len(seeds) == 7 * 7 * 7 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
