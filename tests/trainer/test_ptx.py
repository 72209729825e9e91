"""The demonstrations mixed into PPO's updates."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.errors import InvalidInput
from app.rows import DemonstrationRow
from app.specs import ModelRef, Optimiser
from tests.trainer.conftest import user, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.sampling.generation import no_tick
from trainer.training.critics import ActorCritic, ValueHead
from trainer.training.ptx import Mix
from trainer.training.training import Training


def write(path: Path, rows: list[DemonstrationRow]) -> Path:
    write_rows(path, rows)
    return path


def rows_of(count: int) -> list[DemonstrationRow]:
    return [
        DemonstrationRow(id=i, messages=user(f"Say {i}"), response="yes " * (1 + i), weight=1 + i % 3)
        for i in range(count)
    ]


@pytest.mark.parametrize("microbatch", [1, 8])
def test_the_gradient_is_that_of_transformers_loss_a_token(tiny_ref: ModelRef, tmp_path: Path, microbatch: int) -> None:
    encoder = ChatEncoder(load_tokenizer(tiny_ref), 128)
    causal = load_causal_lm(tiny_ref, trainable=True)
    module = ActorCritic(causal, ValueHead(causal)).eval()
    settings = Optimiser(learning_rate=1e-3, microbatch_size=microbatch)
    training = Training(module, settings, seed=0, total_steps=10)
    mix = Mix(write(tmp_path / "demos.jsonl", rows_of(3)), encoder, 0.5, batch_size=9, pad_id=2)
    ticks: list[None] = []
    nll = mix.accumulate(training, module.share, lambda: ticks.append(None))  # all three
    assert len(ticks) == {1: 3, 8: 1}[microbatch]  # a run reports, and can be cancelled, between forward passes

    plain = AutoModelForCausalLM.from_pretrained(tiny_ref.base)
    total, weights = torch.zeros(()), 0.0
    for row in rows_of(3):
        prompt, completion = encoder.prompt(row.messages), encoder.completion(row.response)
        ids = torch.tensor([[*prompt, *completion]])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        total = total + row.weight * len(completion) * plain(input_ids=ids, labels=labels).loss
        weights += row.weight * len(completion)
    expected = total / weights
    assert nll == pytest.approx(expected.item(), rel=1e-5)
    (0.5 * expected).backward()
    for (name, mine), theirs in zip(causal.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_steps_take_demonstrations_in_turn(tiny_ref: ModelRef, tmp_path: Path) -> None:
    encoder = ChatEncoder(load_tokenizer(tiny_ref), 128)
    causal = load_causal_lm(tiny_ref, trainable=True)
    training = Training(ActorCritic(causal, ValueHead(causal)), Optimiser(learning_rate=1e-3), seed=0, total_steps=10)
    mix = Mix(write(tmp_path / "demos.jsonl", rows_of(4)), encoder, 0.5, batch_size=8, pad_id=2)
    assert mix.number == 2  # one demonstration per four episodes
    seen = []
    for step in (0, 1, 2, 0):
        training.steps = step
        seen.append(mix.accumulate(training, True, no_tick))
    assert seen[0] == seen[3]
    assert len(set(seen)) > 1


def test_what_cannot_be_learned_is_named(tiny_ref: ModelRef, tmp_path: Path) -> None:
    encoder = ChatEncoder(load_tokenizer(tiny_ref), 64)
    rows = rows_of(3)
    rows[0] = rows[0].model_copy(update={"response": "long " * 20})
    rows[1] = rows[1].model_copy(update={"weight": 0.0})
    path = write(tmp_path / "demos.jsonl", rows)
    mix = Mix(path, encoder, 0.5, 8, pad_id=2)
    assert len(mix.sequences) == mix.number == 1
    assert mix.dropped == (
        "1 demonstrations are longer than 64 tokens without their prompt: 0",
        "1 demonstrations have weight 0: 1",
    )
    write(path, [*rows[:2], rows[2].model_copy(update={"split": "heldout"})])
    with pytest.raises(InvalidInput, match=r"demos\.jsonl holds no demonstration to train on"):
        Mix(path, encoder, 0.5, 8, pad_id=2)
