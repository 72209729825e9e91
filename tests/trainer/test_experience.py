"""The order of prompts, the figures before an update, and their equality with the update's forward pass."""

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.rows import PromptRow
from app.specs import Lora, ModelRef, Optimiser, PPOSpec
from tests.trainer.conftest import trainable_parameters, user
from trainer.algorithms.gae import gae
from trainer.algorithms.ppo import token_rewards
from trainer.batching.chat import ChatEncoder
from trainer.models.loading import load_policy_and_reference, load_tokenizer, seed_everything
from trainer.processes import generator_at
from trainer.recipes.ppo import Learner
from trainer.sampling.generation import no_tick
from trainer.sampling.responses import Sampler
from trainer.training.critics import ActorCritic, ValueHead
from trainer.training.experience import (
    PAGE_SAMPLE,
    Clock,
    Collector,
    Rollout,
    draw,
    in_turn,
    page_prompts,
    rollout_sizes,
)
from trainer.training.policy_gradient import averaged, minibatches
from trainer.training.training import Training

ROWS = [PromptRow(id=10 + i, messages=user("Hm" * (1 + 4 * i))) for i in range(4)]


def spec_of(ref: ModelRef, **changes: Any) -> PPOSpec:
    settings: dict[str, Any] = {
        "policy": ref,
        "reference": ref,
        "reward_models": ("unused",),
        "prompts": "unused",
        "optimiser": Optimiser(learning_rate=1e-3, epochs=1, batch_size=8, microbatch_size=3, warmup_ratio=0.0),
        "episodes": 8,
        "rollout_size": 8,
        "samples_per_prompt": 2,
        "max_new_tokens": 8,
        "max_length": 128,
        "lora": Lora(rank=4, alpha=8),
    }
    return PPOSpec(**settings | changes)


# ---- prompts in turn -------------------------------------------------------------------------------------------------


def test_things_come_in_turn_wherever_one_begins() -> None:
    def generator(turn: int) -> torch.Generator:
        return generator_at(7, turn)

    whole = list(in_turn(5, 0, 17, generator))
    assert [turn for _, turn in whole] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 2
    orders = [[i for i, turn in whole if turn == number] for number in range(3)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    assert list(in_turn(5, 8, 9, generator)) == whole[8:]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_no_sample_of_a_prompt_is_drawn_twice_in_a_run(tiny_ref: ModelRef, k: int) -> None:
    spec = spec_of(tiny_ref, episodes=29, rollout_size=9, samples_per_prompt=k)
    sizes = rollout_sizes(spec)
    assert sizes == [9, 9, 9, 2]
    drawn: Counter[tuple[int, int]] = Counter()
    for number, size in enumerate(sizes):
        wanted = draw(ROWS, spec, 9 * number, size)
        assert sum(len(indices) for _, indices in wanted) == size
        assert len({row.id for row, _ in wanted}) == len(wanted)  # each prompt is processed once
        drawn.update((row.id, index) for row, indices in wanted for index in indices)
    assert set(drawn.values()) == {1}
    counts = Counter(row_id for row_id, _ in drawn)
    assert max(counts.values()) - min(counts.values()) <= k
    assert {index for _, index in drawn} == set(range(max(counts.values()))) - {PAGE_SAMPLE}


def test_every_epoch_of_a_rollout_is_a_fresh_permutation(tiny_ref: ModelRef) -> None:
    spec = spec_of(tiny_ref, optimiser=Optimiser(learning_rate=1e-3, epochs=3, batch_size=4))
    batches = minibatches(spec, 5, range(10), 4)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[i for batch in batches[start : start + 3] for i in batch] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert minibatches(spec, 5, range(10), 4) == batches != minibatches(spec, 6, range(10), 4)


def test_pages_show_every_slice() -> None:
    rows = [PromptRow(id=i, messages=user("Q"), slices={"domain": "rare" if i == 70 else "common"}) for i in range(90)]
    rows += [
        PromptRow(id=90 + i, messages=user("Q"), slices={"domain": "common", "difficulty": "hard"}) for i in (0, 1)
    ]
    chosen = page_prompts(rows, seed=3)
    assert len(chosen) == len({row.id for row in chosen}) == 8
    assert 70 in {row.id for row in chosen}
    assert chosen == page_prompts(rows, seed=3) != page_prompts(rows, seed=4)
    assert sorted(row.id for row in page_prompts(rows[:5], seed=0)) == [0, 1, 2, 3, 4]


# ---- a rollout, and its updates --------------------------------------------------------------------------------------


class Bench:
    """A learner with a rollout and its figures, before any update."""

    def __init__(self, spec: PPOSpec) -> None:
        seed_everything(0)
        self.model, reference = load_policy_and_reference(spec.policy, spec.reference, spec.lora)
        tokenizer = load_tokenizer(spec.policy)
        self.module = ActorCritic(self.model, ValueHead(self.model)).eval()
        sampler = Sampler(self.model, ChatEncoder(tokenizer, 128), spec.max_new_tokens, spec.temperature, 0, "ppo")
        pad_id = tokenizer.pad_token_id
        self.collector = Collector(
            self.module,
            reference,
            sampler,
            lambda responses: torch.tensor([float(len(r.text)) for r in responses]),
            ROWS,
            8,
            pad_id,
            no_tick,
        )
        self.clock = Clock()
        self.responses, self.rollout, _ = self.collector.collect([(row, [0, 1]) for row in ROWS], self.clock)
        self.training = Training(self.module, spec.optimiser, seed=0, total_steps=10)
        self.learner = Learner(spec, self.training, self.module.share, pad_id, None)

    def update(self, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        return self.learner.accumulate(self.rollout, range(8), advantages, returns)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_sampling_reference_and_update_agree(tiny_ref: ModelRef, temperature: float) -> None:
    bench = Bench(spec_of(tiny_ref, temperature=temperature))
    rollout = bench.rollout
    for i, response in enumerate(bench.responses):
        length = len(response.sample.tokens)
        assert rollout.lengths[i] == rollout.valid_mask[i].sum() == length
        sampled = torch.tensor(response.sample.logps)
        torch.testing.assert_close(rollout.logps[i, :length], sampled, atol=1e-5, rtol=1e-5)
        assert rollout.sequences()[i] == (response.prompt, response.sample.tokens)
        assert ROWS[int(rollout.rows[i])] == response.row
        assert rollout.scores[i] == len(response.text)
        assert rollout.finished[i] == response.sample.finished
    # A new adapter is the identity, and a new critic returns 0.
    torch.testing.assert_close(rollout.logps, rollout.reference_logps, atol=1e-5, rtol=1e-5)
    assert rollout.kl.abs().max() < 1e-4
    assert rollout.values.abs().max() == 0
    assert set(bench.clock.seconds) == {"generation", "scoring"}


@torch.no_grad()
def test_a_reference_of_another_architecture_is_read_in_the_way_it_can_be(
    tiny_ref: ModelRef, windowed_model: Path
) -> None:
    bench = Bench(spec_of(tiny_ref, reference=ModelRef(base=str(windowed_model))))
    assert bench.module.share
    plain = AutoModelForCausalLM.from_pretrained(windowed_model)
    for i, (prompt, tokens) in enumerate(bench.rollout.sequences()):
        logits = plain(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(tokens)), list(tokens)]
        torch.testing.assert_close(bench.rollout.reference_logps[i, : len(tokens)], expected, atol=1e-4, rtol=1e-4)


def test_no_more_responses_are_sampled_at_once_than_was_asked_for(tiny_ref: ModelRef) -> None:
    """With few prompts, a rollout has many responses per prompt, which may not fit into memory together."""
    bench = Bench(spec_of(tiny_ref))
    rows: list[int] = []
    drawn = []
    embedding = bench.model.get_input_embeddings()
    with embedding.register_forward_hook(
        lambda _module, inputs, _output: rows.append(len(inputs[0])) if inputs[0].shape[1] == 1 else None
    ):
        for bench.collector.batch_size in (32, 4):
            rows.clear()
            drawn.append(bench.collector.collect([(ROWS[1], list(range(10))), (ROWS[0], [0, 1])], Clock())[1])
            assert max(rows) <= bench.collector.batch_size
    assert drawn[0].sequences() == drawn[1].sequences()
    assert drawn[0].rows.tolist() == drawn[1].rows.tolist() == [1] * 10 + [0] * 2


def test_kl_is_summed_over_the_tokens_of_a_response_and_no_padding() -> None:
    blank = torch.zeros(2, 3)
    rollout = Rollout(
        *(torch.zeros(2, dtype=torch.long), torch.zeros(2, 1), torch.ones(2)),
        tokens=blank,
        lengths=torch.tensor([1, 3]),
        finished=torch.ones(2, dtype=torch.bool),
        scores=torch.zeros(2),
        logps=torch.tensor([[-1.0, 9, 9], [-1, -2, -3]]),
        reference_logps=torch.tensor([[-1.5, 0, 0], [-2, -2, -2.5]]),
        values=blank,
    )
    assert rollout.kl.tolist() == [0.5, 0.5]
    # exp(-x) - 1 + x of 0.5, and of 1, 0, -0.5
    expected = [math.exp(-0.5) - 0.5, math.exp(-1) + math.exp(0.5) - 1.5]
    assert rollout.kl_k3.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_first_ratio_is_one(tiny_ref: ModelRef) -> None:
    bench = Bench(spec_of(tiny_ref, temperature=0.7))
    mask = bench.rollout.valid_mask
    advantages = torch.where(mask, torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)), 0)
    first = bench.update(advantages, advantages)
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/approxkl_avg"] < 1e-9
    assert first["policy/clipfrac_avg"] == 0
    # Whitened advantages have mean 0, so the surrogate at ratio 1 is 0. Values are 0, so their loss is R^2 / 2.
    assert first["loss/policy_avg"] == pytest.approx(0, abs=1e-5)
    assert first["loss/value_avg"] == pytest.approx(float(advantages[mask].square().mean()) / 2, rel=1e-5)
    assert first["loss"] == pytest.approx(first["loss/policy_avg"] + 0.1 * first["loss/value_avg"])
    bench.training.step(first["loss"])
    # At the second update, the ratio differs from 1.
    second = bench.update(advantages, advantages)
    assert second["policy/approxkl_avg"] > 1e-7
    means = averaged([{**first, "lr": 0.5}, {**second, "lr": 0.25}])
    ratios = first["val/ratio"], second["val/ratio"]
    assert means["val/ratio"] == pytest.approx(sum(ratios) / 2)
    assert means["val/ratio_var"] == pytest.approx((ratios[0] - ratios[1]) ** 2 / 4, abs=1e-12)
    assert means["lr"] == 0.25
    assert "loss" not in means


def noise(mask: Tensor) -> Tensor:
    return torch.where(mask, torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)), 0)


def test_a_later_updates_loss_and_gradients_are_those_of_plain_autograd_in_float64(
    tiny_ref: ModelRef, tmp_path: Path
) -> None:
    settings = Optimiser(learning_rate=1e-3, batch_size=8, microbatch_size=2, microbatch_tokens=200)
    spec = spec_of(
        tiny_ref, lora=None, temperature=0.7, clip_range=0.1, value_clip_range=0.001, vf_coef=0.3, optimiser=settings
    )
    bench = Bench(spec)
    rollout, mask = bench.rollout, bench.rollout.valid_mask
    advantages, returns = noise(mask), noise(mask) + mask
    bench.training.step(bench.update(advantages, returns)["loss"])
    found = bench.update(advantages, returns)

    bench.model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    head = copy.deepcopy(bench.module.critic.head).double()
    head.zero_grad()
    logps, values, entropies = [], [], []
    for prompt, tokens in rollout.sequences():
        output = model(input_ids=torch.tensor([[*prompt, *tokens]]), output_hidden_states=True)
        before = slice(len(prompt) - 1, -1)  # the states that tokens are drawn in
        distributions = torch.log_softmax(output.logits[0, before] / 0.7, -1)
        logps.append(distributions[range(len(tokens)), tokens])
        entropies.append(-(distributions.exp() * distributions).sum(-1))
        values.append(head(output.hidden_states[-1][0, before])[:, 0])
    old, old_values, wanted = (column[mask].double() for column in (rollout.logps, rollout.values, returns))
    white = (advantages[mask].double() - advantages[mask].mean()) / advantages[mask].std()
    x, value = torch.cat(logps) - old, torch.cat(values)
    surrogate = torch.minimum(white * x.exp(), white * x.exp().clamp(0.9, 1.1))
    near = old_values + (value - old_values).clamp(-0.001, 0.001)
    errors = torch.maximum((value - wanted) ** 2, (near - wanted) ** 2) / 2
    loss = -surrogate.mean() + 0.3 * errors.mean()
    loss.backward()

    expected = {
        "loss": loss,
        "loss/policy_avg": -surrogate.mean(),
        "loss/value_avg": errors.mean(),
        "policy/approxkl_avg": (x**2 / 2).mean(),
        "policy/entropy_avg": torch.cat(entropies).mean(),
        "val/ratio": x.exp().mean(),
    }
    assert expected["policy/approxkl_avg"] > 1e-3
    assert 0 < found["policy/clipfrac_avg"] < 1 > found["val/clipfrac_avg"] > 0
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: tensor.item() for name, tensor in expected.items()}, rel=1e-4
    )
    plain = dict(model.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in plain.values())
    for name, parameter in bench.model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), plain[name].grad, atol=1e-5 * largest, rtol=1e-3, msg=name)
    for mine, theirs in zip(bench.module.critic.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-5, rtol=1e-3)


def test_advantages_are_whitened_within_their_minibatch(tiny_ref: ModelRef) -> None:
    """A step does not depend on their scale, their mean or the advantages of other episodes."""
    gradients = []
    for scale, shift, others in ((1.0, 0.0, 0.0), (7.0, 3.0, 50.0)):
        bench = Bench(spec_of(tiny_ref, vf_coef=0.0))
        mask = bench.rollout.valid_mask
        advantages = torch.where(mask, scale * noise(mask) + shift, 0)
        advantages[4:] += others
        bench.learner.accumulate(bench.rollout, range(4), advantages, torch.zeros_like(advantages))
        gradients.append([p.grad for p in trainable_parameters(bench.model) if p.grad is not None])
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 1e-3
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("rows", "tokens", "share"), [(1, 10_000, True), (3, 60, True), (8, 10_000, False)])
def test_how_a_minibatch_is_laid_out_changes_no_gradient(
    tiny_ref: ModelRef, rows: int, tokens: int, share: bool
) -> None:
    """This also tests that padding has no effect: a single row has none, and a row per sequence has the most."""
    gradients = []
    for size, room, together in ((8, 10_000, True), (rows, tokens, share)):
        settings = Optimiser(learning_rate=1e-3, batch_size=8, microbatch_size=size, microbatch_tokens=room)
        bench = Bench(spec_of(tiny_ref, optimiser=settings))
        bench.learner.share = together
        rollout = bench.rollout
        rewards, _ = token_rewards(rollout.scores, rollout.logps, rollout.reference_logps, rollout.valid_mask, 0.1)
        bench.update(*gae(rewards, rollout.values, rollout.valid_mask, 1.0, 0.95))
        gradients.append([p.grad for p in trainable_parameters(bench.module) if p.grad is not None])
        assert len(gradients[-1]) > 2
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 1e-3
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, atol=3e-6, rtol=1e-3)


def test_a_rollout_goes_through_a_checkpoint_as_it_is(tiny_ref: ModelRef, tmp_path: Path) -> None:
    rollout = Bench(spec_of(tiny_ref)).rollout
    save_file(rollout._asdict(), tmp_path / "rollout.safetensors")
    for before, after in zip(rollout, Rollout(**load_file(tmp_path / "rollout.safetensors")), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
