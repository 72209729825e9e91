"""The PPO recipe, whole, on a tiny model with a reward whose optimum is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.specs import Lora, ModelRef, Optimiser, PPOSpec, PromptRow
from tests.trainer.conftest import user
from trainer.algorithms.gae import gae
from trainer.data import ChatEncoder
from trainer.modeling import load_policy_and_reference, load_tokenizer, seed_everything, trainable_parameters
from trainer.recipes import ppo
from trainer.reporting import ConsoleReporter, PolicyResult, RunCancelled
from trainer.rollout import Response, Sampler, no_tick

FIELD_NAMES = {
    "objective/kl", "objective/kl_per_token", "objective/kl_coef", "objective/scores", "objective/rlhf_reward",
    "objective/non_score_reward", "objective/entropy", "policy/approxkl_avg", "policy/clipfrac_avg",
    "policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var",
    "val/num_eos_tokens", "ppo/val/var_explained", "lr", "eps",
}  # fmt: skip


def low_bytes(responses: Sequence[Response]) -> Tensor:
    """The share of tokens in the lower half of the vocabulary, between 0 and 1: a random model has about 1/2."""
    return torch.tensor([sum(t < 130 for t in r.sample.tokens) / len(r.sample.tokens) for r in responses])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        PromptRow(id=i, messages=user("Hm" * (1 + i % 3)), slices={"domain": "even" if i % 2 == 0 else "odd"})
        for i in range(12)
    ]
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


def spec_of(ref: ModelRef, prompts: Path, **changes: Any) -> PPOSpec:
    settings: dict[str, Any] = {
        "policy": ref,
        "reference": ref,
        "reward_models": ("unused",),
        "prompts": str(prompts),
        "optimiser": Optimiser(learning_rate=1e-3, epochs=2, batch_size=8, microbatch_size=8, warmup_ratio=0.0),
        "episodes": 24,
        "rollout_size": 12,
        "max_new_tokens": 8,
        "max_length": 128,
        "lora": Lora(rank=4, alpha=8),
    }
    return PPOSpec(**settings | changes)


def train(spec: PPOSpec, store: ArtifactStore, folder: Path, scorer: Any = low_bytes) -> tuple[PolicyResult, Any]:
    reporter = ConsoleReporter(stream=None)
    folder.mkdir()
    return ppo.train(spec, store, reporter, folder, scorer=scorer), reporter


def test_learns_a_known_optimum_within_the_leash(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(
        tiny_ref,
        prompts,
        lora=None,
        optimiser=Optimiser(learning_rate=5e-4, epochs=2, batch_size=16, microbatch_size=16, warmup_ratio=0.0),
        episodes=1024,
        rollout_size=64,
        kl_coef=0.1,
        kl_target=2.0,
        kl_horizon=64,  # a fifth a rollout, either way
    )
    _result, reporter = train(spec, store, tmp_path / "policy")
    scores, kl, beta = (reporter.values(f"objective/{name}") for name in ("scores", "kl", "kl_coef"))
    first, last = sum(scores[:3]) / 3, sum(scores[-3:]) / 3
    # A response's share has a standard deviation of 0.5 / sqrt(8) = 0.18; a mean over 192 responses one of 0.013.
    assert first == pytest.approx(0.5, abs=0.06)
    assert last > first + 8 * 0.013
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert 0.5 < sum(kl[-5:]) / 5 < 1.5 * 2.0
    # Below its target the leash loosens, above it tightens, by at most a fifth a rollout.
    for before, after, measured in zip(beta, beta[1:], kl, strict=False):
        expected = before * (1 + min(max(measured / 2.0 - 1, -0.2), 0.2))
        assert after == pytest.approx(expected)


def test_metrics_have_the_fields_names_and_slices(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    result, reporter = train(spec_of(tiny_ref, prompts, missing_eos_penalty=1.0), store, tmp_path / "policy")
    assert {m.name for m in reporter.recorded if not m.slice} == FIELD_NAMES == set(result.metrics)
    assert {(m.name, m.slice) for m in reporter.recorded if m.slice} == {
        (f"objective/{name}", f"domain={value}") for name in ("scores", "kl") for value in ("even", "odd")
    }
    assert result.train_rows == 24
    assert result.metrics == {name: reporter.last(name) for name in FIELD_NAMES}
    for step in (1, 2):
        at = {m.name: m.value for m in reporter.recorded if m.step == step and not m.slice}
        unfinished = 1 - at["val/num_eos_tokens"] / 12
        expected = at["objective/scores"] - unfinished + at["objective/non_score_reward"]
        assert at["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-5)
        assert at["objective/non_score_reward"] == pytest.approx(
            -at["objective/kl_coef"] * at["objective/kl"], abs=1e-5
        )


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
def test_the_policy_is_saved_and_differs_from_its_base(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path, lora: Lora | None
) -> None:
    folder = tmp_path / "policy"
    train(spec_of(tiny_ref, prompts, lora=lora), store, folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tiny_ref.base)(ids).logits
        policy = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert 1e-3 < (policy - base).abs().max() < 5


class Bench:
    """A learner with a rollout that has been looked at, before any update."""

    def __init__(self, spec: PPOSpec, rows: list[PromptRow]) -> None:
        order = seed_everything(0)
        self.model, self.reference = load_policy_and_reference(spec.policy, spec.reference, spec.lora)
        tokenizer = load_tokenizer(spec.policy)
        sampler = Sampler(self.model, ChatEncoder(tokenizer, 128), spec.max_new_tokens, spec.temperature, 0)
        self.responses = [r for batch in sampler.respond([(row, [0, 1]) for row in rows], 8) for r in batch]
        self.critic = ppo.Critic(self.model)
        self.learner = ppo.Learner(spec, self.model, self.critic, tokenizer.pad_token_id, order, no_tick)
        self.rollout = self.learner.look(self.responses, self.reference())

    def gradients(self) -> list[Tensor]:
        parameters = [*trainable_parameters(self.model), *self.critic.parameters()]
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


ROWS = [PromptRow(id=i, messages=user("Hm" * (1 + 4 * i))) for i in range(4)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_sampling_and_update_agree(tiny_ref: ModelRef, prompts: Path, temperature: float) -> None:
    bench = Bench(spec_of(tiny_ref, prompts, temperature=temperature), ROWS)
    for i, response in enumerate(bench.responses):
        length = len(response.sample.tokens)
        assert bench.rollout.valid_mask[i].sum() == length
        sampled = torch.tensor(response.sample.logps)
        torch.testing.assert_close(bench.rollout.logps[i, :length], sampled, atol=1e-5, rtol=1e-5)
    # A new adapter is the identity, and a new critic says 0.
    torch.testing.assert_close(bench.rollout.logps, bench.rollout.reference_logps, atol=1e-5, rtol=1e-5)
    assert bench.rollout.values.abs().max() == 0


def test_the_first_ratio_is_one(tiny_ref: ModelRef, prompts: Path) -> None:
    one_step = Optimiser(learning_rate=1e-3, epochs=1, batch_size=8, microbatch_size=3, warmup_ratio=0.0)
    bench = Bench(spec_of(tiny_ref, prompts, optimiser=one_step, temperature=0.7), ROWS)
    mask = bench.rollout.valid_mask
    advantages = torch.where(mask, torch.randn(mask.shape), 0)
    watched = bench.learner.update(bench.rollout, advantages, advantages)
    assert watched["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert watched["policy/approxkl_avg"] < 1e-9
    assert watched["policy/clipfrac_avg"] == 0
    assert watched["val/ratio_var"] == 0
    # ... and of the second epoch it is not.
    assert bench.learner.update(bench.rollout, advantages, advantages)["policy/approxkl_avg"] > 1e-7


@pytest.mark.parametrize("microbatch_size", [1, 3])
def test_the_split_into_microbatches_changes_no_gradient(
    tiny_ref: ModelRef, prompts: Path, microbatch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the test that padding changes nothing: one row alone has none."""
    gradients = []
    for size in (8, microbatch_size):
        settings = Optimiser(learning_rate=1e-3, epochs=1, batch_size=8, microbatch_size=size, warmup_ratio=0.0)
        bench = Bench(spec_of(tiny_ref, prompts, optimiser=settings), ROWS)
        rollout = bench.rollout
        scores = low_bytes(bench.responses)
        rewards, _ = ppo.token_rewards(scores, rollout.logps, rollout.reference_logps, rollout.valid_mask, 0.1)
        advantages, returns = gae(rewards, rollout.values, rollout.valid_mask, 1.0, 0.95)
        taken: list[list[Tensor]] = []
        step = bench.learner.stepper.step

        def spy(loss: float, step: Any = step, bench: Bench = bench, taken: list[list[Tensor]] = taken) -> Any:
            taken.append(bench.gradients())
            return step(loss)

        monkeypatch.setattr(bench.learner.stepper, "step", spy)
        bench.learner.update(rollout, advantages, returns)
        assert len(taken) == 1
        gradients.append(taken[0])
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 1e-3
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, atol=2e-6, rtol=1e-3)


def test_kl_stop_ends_before_another_update(
    tiny_ref: ModelRef, other_tiny_model: Path, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    # Another random model as the reference: KL is large from the start.
    spec = spec_of(tiny_ref, prompts, reference=ModelRef(base=str(other_tiny_model)), kl_stop=0.01)
    result, reporter = train(spec, store, tmp_path / "policy")
    assert reporter.values("objective/kl")[0] > 0.01
    assert result.train_rows == 12
    assert "lr" not in result.metrics  # nothing was updated
    assert (tmp_path / "policy" / "adapter_model.safetensors").exists()


def test_the_same_seed_makes_the_same_policy(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    runs = [train(spec_of(tiny_ref, prompts, seed=3), store, tmp_path / f"policy-{i}")[1] for i in range(2)]
    other = train(spec_of(tiny_ref, prompts, seed=4), store, tmp_path / "policy-2")[1]
    for name in FIELD_NAMES - {"eps"}:
        assert runs[0].values(name) == runs[1].values(name)
    assert runs[0].values("objective/scores") != other.values("objective/scores")


def test_a_rest_of_episodes_is_trained_on_too(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(tiny_ref, prompts, episodes=17, max_new_tokens=1)  # rollouts of 12 and 5; the last minibatch has 5
    result, reporter = train(spec, store, tmp_path / "policy")
    assert result.train_rows == 17
    assert result.tokens == 17
    assert len(reporter.values("lr")) == 2


def test_prompts_come_round_in_new_orders_with_new_samples() -> None:
    prompts = ppo.endless_prompts(ROWS, torch.Generator().manual_seed(0))
    drawn = ppo.draw(prompts, 10)
    assert sum(len(indices) for _, indices in drawn) == 10
    for _row, indices in drawn:
        assert indices == list(range(len(indices)))
        assert len(indices) in (2, 3)


def test_cancelling_saves_nothing(tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path) -> None:
    class Cancelling(ConsoleReporter):
        def progress(self, done: int, total: int, message: str = "") -> None:
            if message == "training the policy":
                raise RunCancelled("The run was cancelled.")

    with pytest.raises(RunCancelled):
        ppo.train(spec_of(tiny_ref, prompts), store, Cancelling(stream=None), tmp_path, low_bytes)
    assert not (tmp_path / "adapter_config.json").exists()


def test_an_empty_prompts_file_is_named(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    empty = tmp_path / "nothing.jsonl"
    empty.write_text("")
    with pytest.raises(InvalidInput, match=r"nothing\.jsonl holds no prompts"):
        train(spec_of(tiny_ref, empty), store, tmp_path / "policy")
