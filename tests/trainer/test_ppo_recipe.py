"""The PPO recipe as a whole, on a tiny model."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput
from app.rows import DemonstrationRow, PromptRow
from app.specs import Lora, ModelRef, Optimiser, PPOSpec
from tests.trainer.conftest import build_reward_model, build_short_model, user, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.checkpoints import Checkpoints
from trainer.evaluation import figures as evaluation
from trainer.evaluation.figures import reward_heads
from trainer.models.loading import load_tokenizer
from trainer.recipes import ppo
from trainer.reporting import ConsoleReporter, PolicyResult, RunCancelled, TrainingDiverged
from trainer.reward.model import new_reward_model, save_reward_model
from trainer.sampling import responses as rollout
from trainer.sampling.responses import Response
from trainer.speed import precision
from trainer.training import policy_gradient
from trainer.training.experience import Rollout

FIELD_NAMES = {
    "objective/kl", "objective/kl_per_token", "objective/kl_k3", "objective/kl_coef", "objective/scores",
    "objective/rlhf_reward", "objective/non_score_reward", "objective/entropy", "policy/approxkl_avg",
    "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
    "val/ratio", "val/ratio_var", "val/num_eos_tokens", "ppo/val/var_explained", "lr", "eps",
}  # fmt: skip
TIMES = {"time/generation", "time/scoring", "time/update"}
HEADS = ("reward/0", "reward/1")


def low_bytes(responses: Sequence[Response]) -> Tensor:
    """Return the share of tokens in the lower half of the vocabulary; a random model has about 1/2."""
    return torch.tensor([sum(t < 130 for t in r.sample.tokens) / len(r.sample.tokens) for r in responses])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        PromptRow(id=i, messages=user("Hm" * (1 + i % 3)), slices={"domain": "even" if i % 2 == 0 else "odd"})
        for i in range(12)
    ]
    write_rows(path, rows)
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


def train(
    spec: PPOSpec, store: ArtifactStore, folder: Path, scorer: Any = low_bytes
) -> tuple[PolicyResult, ConsoleReporter]:
    folder.mkdir()
    reporter = ConsoleReporter(stream=None, path=folder.with_suffix(".jsonl"))
    return ppo.train(spec, store, reporter, folder, scorer=scorer), reporter


def test_metrics_have_the_fields_names_and_slices(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    demonstration = DemonstrationRow(id=1, messages=user("Hm"), response="yes")
    ptx = write_rows(tmp_path / "demonstrations.jsonl", [demonstration])
    spec = spec_of(tiny_ref, prompts, missing_eos_penalty=1.0, ptx=str(ptx), ptx_coef=0.5)
    result, reporter = train(spec, store, tmp_path / "policy")
    monitored = {name for name in result.metrics if name.startswith("monitor/")}
    names = FIELD_NAMES | TIMES | {"loss/ptx_avg"} | monitored
    assert {m.name for m in reporter.recorded if not m.slice} == names == set(result.metrics)
    assert {(m.name, m.slice) for m in reporter.recorded if m.slice} == {
        (f"objective/{name}", f"domain={value}")
        for name in ("scores", "kl", "kl_per_token", "kl_k3", "entropy")
        for value in ("even", "odd")
    }
    assert result.train_rows == 24
    assert result.metrics["eps"] * result.seconds >= 24  # over all episodes; the last page and saving come later
    assert result.metrics == {name: reporter.last(name) for name in names}
    assert reporter.values("loss/ptx_avg")[0] > reporter.values("loss/ptx_avg")[1] > 0  # the loss falls
    assert all(reporter.last(name) > 0 for name in (*TIMES, "objective/kl_k3"))
    for step in (1, 2):
        at = {m.name: m.value for m in reporter.recorded if m.step == step and not m.slice}
        # Subtracted from the reward, not from the reported score.
        unfinished = 1 - at["val/num_eos_tokens"] / 12
        expected = at["objective/scores"] - unfinished + at["objective/non_score_reward"]
        assert at["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-5)
        assert at["objective/non_score_reward"] == pytest.approx(
            -at["objective/kl_coef"] * at["objective/kl"], abs=1e-5
        )
        # A rollout of 12 has each prompt once, so there are six of each slice.
        for name in ("objective/scores", "objective/kl", "objective/kl_k3", "objective/entropy"):
            by_slice = [m.value for m in reporter.recorded if m.step == step and m.slice and m.name == name]
            assert at[name] == pytest.approx(sum(by_slice) / 2, abs=1e-5)


def test_scores_are_normalised_then_clipped_then_replaced_where_unfinished(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def scorer(responses: Sequence[Response]) -> Tensor:
        scores = torch.tensor([5.0 * len(r.text) - 20 for r in responses])
        if len(responses) == 12:  # not a sample page
            seen.append((scores.double().numpy(), np.array([r.sample.finished for r in responses])))
        return scores

    spec = spec_of(
        tiny_ref,
        prompts,
        episodes=36,
        max_new_tokens=40,  # some finish
        normalise_scores=True,
        clip_score=0.75,
        missing_eos="replace",
        missing_eos_penalty=2.0,
    )
    _result, reporter = train(spec, store, tmp_path / "policy", scorer)
    assert any(finished.any() for _, finished in seen)
    every = np.concatenate([scores for scores, _ in seen])
    for number, (scores, finished) in enumerate(seen):
        clipped = np.clip(scores / every[: 12 * (number + 1)].std(ddof=1), -0.75, 0.75)
        expected = np.where(finished, clipped, -2.0).mean()
        assert reporter.values("objective/scores")[number] == pytest.approx(scores.mean(), rel=1e-5)
        measured = reporter.values("objective/rlhf_reward")[number]
        assert measured - reporter.values("objective/non_score_reward")[number] == pytest.approx(expected, abs=1e-5)


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


def test_a_model_with_dropout_is_trained_without_it(
    tiny_model: Path, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = tmp_path / "dropping"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    once = Optimiser(learning_rate=1e-3, epochs=1, batch_size=12, microbatch_size=12, warmup_ratio=0.0)
    spec = spec_of(ModelRef(base=str(folder)), prompts, optimiser=once, episodes=12)
    _result, reporter = train(spec, store, tmp_path / "policy")
    # One update of the policy that sampled: any noise between the two passes would be visible.
    assert reporter.last("val/ratio") == pytest.approx(1, abs=1e-5)
    assert reporter.last("policy/approxkl_avg") < 1e-9
    assert reporter.last("objective/kl") == pytest.approx(0, abs=1e-4)


def test_kl_stop_ends_before_another_update(
    tiny_ref: ModelRef, other_tiny_model: Path, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    # Another random model as the reference: KL is large from the start.
    spec = spec_of(tiny_ref, prompts, reference=ModelRef(base=str(other_tiny_model)), kl_stop=0.01)
    result, reporter = train(spec, store, tmp_path / "policy")
    assert reporter.values("objective/kl")[0] > 0.01
    assert result.train_rows == 12
    assert f"Stopped after 12 of {spec.episodes} episodes: the KL was" in result.notes[-1]
    assert "lr" not in result.metrics  # there were no updates
    assert (tmp_path / "policy" / "adapter_model.safetensors").exists()


def test_the_controller_follows_the_kl_of_whole_responses(
    tiny_ref: ModelRef, other_tiny_model: Path, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(tiny_ref, prompts, reference=ModelRef(base=str(other_tiny_model)), kl_target=None)
    kl = train(spec, store, tmp_path / "fixed")[1].values("objective/kl")[0]
    led = train(spec.model_copy(update={"kl_target": 1.1 * kl}), store, tmp_path / "led")[1]
    # 12 episodes, a horizon of 100, and 1 / 1.1 of the target
    assert led.values("objective/kl_coef") == [0.05, pytest.approx(0.05 * (1 + (1 / 1.1 - 1) * 12 / 100), rel=1e-5)]


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
    spec = spec_of(tiny_ref, prompts, episodes=29, max_new_tokens=1)  # rollouts of 12, 12 and 5
    result, reporter = train(spec, store, tmp_path / "policy")
    assert result.train_rows == result.tokens == 29
    # Two minibatches twice, again, and one twice: the rates of steps 4, 8 and 10 of 10 on a line from 1e-3 to 0.
    assert reporter.values("lr") == pytest.approx([7e-4, 3e-4, 1e-4])


def test_approxkl_stop_ends_the_updates_of_a_rollout_before_the_step_that_would_go_further(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = ppo.Learner.accumulate

    def spy(self: ppo.Learner, *arguments: Any) -> dict[str, float]:
        assert all(p.grad is None for p in self.training.module.parameters())  # no gradient remains of the skipped step
        return accumulate(self, *arguments)

    monkeypatch.setattr(ppo.Learner, "accumulate", spy)
    settings = Optimiser(learning_rate=1e-3, epochs=4, batch_size=4, warmup_ratio=0.0)  # 12 updates a rollout
    spec = spec_of(tiny_ref, prompts, lora=None, optimiser=settings, approxkl_stop=0.01)
    result, reporter = train(spec, store, tmp_path / "policy")
    assert reporter.values("policy/early_stop") == [1, 1]
    # The schedule continues as planned: the second rollout starts at half the rate, however early the first one ended.
    taken = [1 - lr / 1e-3 for lr in reporter.values("lr")]  # the last step's place in the run, 0 to 1
    assert taken[0] < 0.5 <= taken[1] < 1
    assert result.train_rows == 24
    calm = train(spec.model_copy(update={"approxkl_stop": 100.0}), store, tmp_path / "calm")[1]
    assert calm.values("policy/early_stop") == [0, 0]
    assert calm.values("policy/approxkl_avg")[0] > reporter.values("policy/approxkl_avg")[0]


def test_sample_pages_show_the_same_prompts_answered_with_the_same_seeds(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(tiny_ref, prompts, episodes=60, evaluate_every=2, max_new_tokens=4)
    _result, reporter = train(spec, store, tmp_path / "policy")
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in (0, 2, 4, 5) for _ in range(8)]
    assert set(rows[0]) == {"step", "prompt_id", "messages", "slices", "response", "score", "kl", "finished"}
    pages = [rows[start : start + 8] for start in range(0, 32, 8)]
    for page in pages:
        assert [row["prompt_id"] for row in page] == [row["prompt_id"] for row in pages[0]]
        assert [row["slices"]["domain"] for row in page].count("even") == 4
        assert page[0]["messages"] == list(user("Hm" * (1 + page[0]["prompt_id"] % 3)))
    # At the start, the policy equals the reference and has no KL; after training, it gives other answers.
    assert all(abs(row["kl"]) < 1e-4 for row in pages[0])
    assert any(abs(row["kl"]) > 1e-3 for row in pages[3])
    assert reporter.pages[5] == [{k: v for k, v in row.items() if k != "step"} for row in pages[3]]
    # Samples on pages are not used for training: the run is the same without them.
    apart = spec.model_copy(update={"evaluate_every": 100})
    assert train(apart, store, tmp_path / "again")[1].values("objective/scores") == reporter.values("objective/scores")


@pytest.mark.parametrize("changes", [{"lora": None}, {"critic": "reward", "approxkl_stop": 0.004}])
def test_an_interrupted_run_ends_with_the_same_weights(
    tiny_ref: ModelRef,
    reward_folder: Path,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    settings = Optimiser(learning_rate=1e-3, epochs=2, batch_size=4, microbatch_size=3, warmup_ratio=0.0)
    spec = spec_of(
        tiny_ref,
        prompts,
        reward_models=(str(reward_folder),),
        optimiser=settings,
        max_new_tokens=4,
        normalise_scores=True,
        **changes,
    )
    whole_reporter = train(spec, store, tmp_path / "whole")[1]

    class Killed(Exception):
        pass

    class Dying(ConsoleReporter):
        def __init__(self, after: int) -> None:
            super().__init__(stream=None)
            self.after = after

        def progress(self, done: int, total: int, message: str = "") -> None:
            if message == "training the policy":
                self.after -= 1
                if not self.after:
                    raise Killed

    rollouts = 0

    def counting(responses: Sequence[Response]) -> Tensor:
        nonlocal rollouts
        rollouts += len(responses) == 12  # a page has 8
        return low_bytes(responses)

    (tmp_path / "parts").mkdir()
    values: dict[tuple[int, str, str], float] = {}
    attempts = 0
    while True:
        attempts += 1
        # Every second attempt writes no checkpoints, so some updates are repeated.
        checkpoints = Checkpoints(store, "checkpoints", spec, every_seconds=0 if attempts % 2 else 1e9)
        reporter = Dying(after=attempts)
        try:
            ppo.train(spec, store, reporter, tmp_path / "parts", checkpoints, counting)
            break
        except Killed:
            pass
        finally:
            values |= {(m.step, m.name, m.slice): m.value for m in reporter.recorded}
    assert attempts > 3
    assert rollouts in (2, 3)  # a rollout without a checkpoint is sampled again, with the same numbers
    assert digest_folder(tmp_path / "parts") == digest_folder(tmp_path / "whole")
    timed = TIMES | {"eps"}
    assert {place: value for place, value in values.items() if place[1] not in timed} == {
        (m.step, m.name, m.slice): m.value for m in whole_reporter.recorded if m.name not in timed
    }


def test_checkpoints_take_no_more_than_their_share_of_time(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes rollouts: if a checkpoint takes a second, the next one comes at least 20 seconds later."""

    def slow(*arguments: Any, **named: Any) -> str:
        time.sleep(1)
        return digest_folder(*arguments, **named)

    monkeypatch.setattr("trainer.checkpoints.digest_folder", slow)
    spec, saved = spec_of(tiny_ref, prompts, episodes=48, max_new_tokens=2), []
    for number, (least, expected) in enumerate(((1e-6, 1), (1e9, 0))):
        kept = Checkpoints(store, f"run-{number}", spec, least, on_saved=saved.append)
        (folder := tmp_path / f"policy-{number}").mkdir()
        ppo.train(spec, store, ConsoleReporter(stream=None), folder, kept, low_bytes)
        assert len(saved) == expected
        saved.clear()


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.95])
def test_equal_scores_teach_nothing(
    tiny_ref: ModelRef,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gae_lambda: float,
    lora: Lora | None,
) -> None:
    """A token's position or an answer's length must not look like merit."""
    plain = rollout.Sampling  # with more stop tokens, so that responses have many lengths
    monkeypatch.setattr(rollout, "Sampling", lambda most, heat, _: plain(most, heat, frozenset(range(0, 300, 16))))
    whiten, seen = ppo.masked_whiten, []

    def spy(values: Tensor, valid_mask: Tensor, **named: Any) -> Tensor:
        seen.append((whiten(values, valid_mask, **named), valid_mask.sum(1)))
        return seen[-1][0]

    monkeypatch.setattr(ppo, "masked_whiten", spy)
    spec = spec_of(
        tiny_ref,
        prompts,
        gae_lambda=gae_lambda,
        lora=lora,
        kl_coef=0.0,
        kl_target=None,
        missing_eos_penalty=None,
        vf_coef=0.0,
    )
    _result, reporter = train(spec, store, tmp_path / "policy", lambda said: torch.full((len(said),), 1.7))
    assert len({int(n) for _, lengths in seen for n in lengths}) > 3
    assert max(float(whitened.abs().max()) for whitened, _ in seen) < 1e-5
    assert reporter.last("objective/kl_k3") < 1e-6  # the policy has not moved


def test_a_run_scores_in_the_precision_it_began_with_and_its_result_names_it(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first the machine measures bf16 as faster, later not: a resumed run does not measure again."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "SMALLEST_HIDDEN_SIZE", 0)
    reward_model = new_reward_model(tiny_ref, None)
    save_reward_model(reward_model, load_tokenizer(tiny_ref), store.root / "reward")
    load, scoring = evaluation.load_reward_model, []

    def spy(*arguments: Any) -> Any:
        model, tokenizer = load(*arguments)
        scoring.append(next(model.parameters()).dtype)
        return model, tokenizer

    monkeypatch.setattr(evaluation, "load_reward_model", spy)
    spec = spec_of(tiny_ref, prompts, episodes=12, reward_models=("reward",))
    digests = []
    for number, rate in enumerate((9e9, 1e9)):
        monkeypatch.setattr(precision, "measure", lambda device, hidden_size, rate=rate: precision.Rates(1e9, rate))
        (folder := tmp_path / f"policy{number}").mkdir()
        result = ppo.train(spec, store, ConsoleReporter(stream=None), folder, Checkpoints(store, "run", spec, 0, 100))
        assert result.precision == "bfloat16"
        digests.append(digest_folder(folder))
        for old in sorted((store.root / "run").glob("*/step-*"))[1:]:
            shutil.rmtree(old)  # the second time, resume from the first rollout
    assert scoring == [torch.bfloat16] * 2
    assert digests[0] == digests[1]


@pytest.mark.parametrize("whiten", [False, True])
def test_updates_and_figures_are_those_of_a_rollouts_rewards(
    tiny_ref: ModelRef,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whiten: bool,
) -> None:
    accumulate, seen = ppo.Learner.accumulate, []

    def spy(self: ppo.Learner, drawn: Rollout, minibatch: Any, advantages: Tensor, returns: Tensor) -> Any:
        seen.append((drawn, advantages, returns))
        return accumulate(self, drawn, minibatch, advantages, returns)

    monkeypatch.setattr(ppo.Learner, "accumulate", spy)
    changes = {"gamma": 0.9, "gae_lambda": 0.8, "missing_eos_penalty": None, "max_new_tokens": 12}
    plain = rollout.Sampling  # with more stop tokens, so that responses have many lengths
    monkeypatch.setattr(rollout, "Sampling", lambda most, heat, _: plain(most, heat, frozenset(range(0, 300, 16))))
    result, reporter = train(spec_of(tiny_ref, prompts, whiten_rewards=whiten, **changes), store, tmp_path / "policy")
    for step, (drawn, advantages, returns) in ((1, seen[0]), (2, seen[-1])):
        said = {m.name: m.value for m in reporter.recorded if m.step == step and not m.slice}
        logps, reference, values, fitted = (
            [row[:n] for row, n in zip(column.double().numpy(), drawn.lengths.tolist(), strict=True)]
            for column in (drawn.logps, drawn.reference_logps, drawn.values, returns)
        )
        # The KL penalty on every token, and the score on the last token.
        kl = [mine - base for mine, base in zip(logps, reference, strict=True)]
        rewards = [-said["objective/kl_coef"] * row for row in kl]
        for row, score in zip(rewards, drawn.scores.tolist(), strict=True):
            row[-1] += score
        if whiten:  # whitening keeps the mean
            every = np.concatenate(rewards)
            rewards = [(row - every.mean()) / every.std(ddof=1) + every.mean() for row in rewards]
        if step == 1:  # with lambda < 1, the critic starts at the mean return
            to_come = [sum(0.9**k * r for k, r in enumerate(row[t:])) for row in rewards for t in range(len(row))]
            assert np.concatenate(values) == pytest.approx(np.full(len(to_come), np.mean(to_come)), abs=1e-5)
        for i, (row, before) in enumerate(zip(rewards, values, strict=True)):
            advantage = after = 0.0
            for t in reversed(range(len(row))):
                advantage = row[t] + 0.9 * after - before[t] + 0.9 * 0.8 * advantage
                after = before[t]
                assert advantages[i, t].item() == pytest.approx(advantage, abs=1e-5)
                # The targets do not use whitened advantages: values are fitted to rewards.
                assert fitted[i][t] == pytest.approx(advantage + before[t], abs=1e-5)
        targets, errors = np.concatenate(fitted), np.concatenate(fitted) - np.concatenate(values)
        assert len({len(row) for row in kl}) > 3
        expected = {
            "objective/kl": np.concatenate(kl).sum() / 12,
            "objective/kl_per_token": np.concatenate(kl).mean(),
            "objective/entropy": -np.concatenate(logps).sum() / 12,
            "ppo/val/var_explained": 1 - errors.var() / targets.var(),
        }
        assert {name: said[name] for name in expected} == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert result.tokens == int(seen[0][0].lengths.sum() + seen[-1][0].lengths.sum())
    assert seen[-1][0].values[seen[-1][0].valid_mask].std() > 0  # it has learned since


def test_a_critic_that_begins_as_the_reward_model_says_what_that_says_of_beginnings(
    tiny_ref: ModelRef,
    reward_folder: Path,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accumulate, seen = ppo.Learner.accumulate, []

    def spy(self: ppo.Learner, drawn: Rollout, *rest: Any) -> dict[str, float]:
        seen.append(drawn)
        return accumulate(self, drawn, *rest)

    monkeypatch.setattr(ppo.Learner, "accumulate", spy)
    spec = spec_of(tiny_ref, prompts, episodes=2, critic="reward", reward_models=(str(reward_folder), "another"))
    train(spec, store, tmp_path / "policy")
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    for (prompt, tokens), values in zip(seen[0].sequences(), seen[0].values, strict=True):
        for t in range(len(tokens)):
            with torch.no_grad():
                score = classifier(torch.tensor([[*prompt, *tokens[:t]]])).logits[0, 0] - 0.25  # minus its offset
            assert float(values[t]) == pytest.approx(float(score), abs=1e-5)


def test_a_critic_with_few_positions_shortens_what_is_read(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    build_short_model(tmp_path / "short", positions=32)
    critic = build_reward_model(tmp_path / "reward", ModelRef(base=str(tmp_path / "short")))
    spec = spec_of(tiny_ref, prompts, critic="reward", reward_models=(str(critic),), lora=None)
    result, _ = train(spec, store, tmp_path / "policy")
    # 19 tokens of the template and 6 of the longest prompts leave no room for 8 new tokens.
    assert result.dropped == ("4 prompts lost a part, to stay within 32 tokens with 8 new ones: 2, 5, 8, 11",)


@pytest.mark.parametrize("kind", ["min", "mean_minus_variance"])
def test_pessimistic_scores_are_made_of_what_all_heads_say(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folders = [build_reward_model(tmp_path / f"reward-{seed}", tiny_ref, seed, HEADS) for seed in (1, 2)]
    build, said = policy_gradient.reward_models_scorer, []

    def spy(*arguments: Any) -> Any:
        score, heads = build(*arguments), reward_heads(folders, 24, dtype=torch.float32)

        def recorded(responses: Sequence[Response]) -> Tensor:
            said.append(heads(responses).double())
            return score(responses)

        return recorded

    monkeypatch.setattr(policy_gradient, "reward_models_scorer", spy)
    spec = spec_of(
        tiny_ref,
        prompts,
        episodes=12,
        reward_models=tuple(map(str, folders)),
        ensemble_score=kind,
        variance_weight=0.7,
        max_length=24,  # shorter than some prompts with their responses
    )
    _result, reporter = train(spec, store, tmp_path / "policy", scorer=None)
    (four,) = [heads for heads in said if len(heads) == 12]  # the rollout; a page has 8
    assert four.shape == (12, 4)
    assert len(set(four.argmin(-1).tolist())) > 1  # different heads are the lowest for different responses
    expected = {"min": four.amin(-1), "mean_minus_variance": four.mean(-1) - 0.7 * four.var(-1, correction=0)}[kind]
    assert reporter.last("objective/scores") == pytest.approx(float(expected.mean()), abs=1e-5)


def test_one_prompt_one_token_one_episode_left_over(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """The last rollout is a single token: whitening has no variance, and the critic has nothing to explain."""
    path = tmp_path / "one.jsonl"
    path.write_text(PromptRow(id=7, messages=user("Hm")).model_dump_json() + "\n")
    spec = spec_of(
        tiny_ref, path, episodes=13, max_new_tokens=1, temperature=0.7, whiten_rewards=True, normalise_scores=True
    )
    result, reporter = train(spec, store, tmp_path / "policy")
    assert result.train_rows == result.tokens == 13
    assert len(reporter.values("lr")) == 2
    assert all(np.isfinite(metric.value) for metric in reporter.recorded)
    assert reporter.last("ppo/val/var_explained") == 0
    assert len({json.loads(line)["prompt_id"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}) == 1


def test_responses_that_all_end_at_once_are_empty_and_finished(
    tiny_ref: ModelRef,
    reward_folder: Path,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = rollout.Sampling
    monkeypatch.setattr(rollout, "Sampling", lambda most, heat, _stops: plain(most, heat, frozenset(range(300))))
    spec = spec_of(tiny_ref, prompts, reward_models=(str(reward_folder),), missing_eos_penalty=5.0)
    result, reporter = train(spec, store, tmp_path / "policy", scorer=None)
    assert result.tokens == 24  # only the end-of-turn tokens
    assert reporter.values("val/num_eos_tokens") == [12, 12]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["response"] for row in rows} == {""}
    # No answer is punished for a missing end, and an empty answer gets the reward model's score.
    score, leash = reporter.last("objective/scores"), reporter.last("objective/non_score_reward")
    assert reporter.last("objective/rlhf_reward") == pytest.approx(score + leash, abs=1e-5)
    assert all(np.isfinite(metric.value) for metric in reporter.recorded)


def test_a_score_that_is_no_number_stops_the_run_before_anything_is_learned_from_it(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    rollouts = 0

    def failing(responses: Sequence[Response]) -> Tensor:
        nonlocal rollouts
        rollouts += len(responses) == 12
        scores = low_bytes(responses)
        if rollouts == 2:
            scores[3] = float("nan")
        return scores

    spec = spec_of(tiny_ref, prompts)
    checkpoints = Checkpoints(store, "run", spec, every_seconds=0, keep=100)
    (folder := tmp_path / "policy").mkdir()
    with pytest.raises(TrainingDiverged, match=r"1 of 12 responses got a score that is not a number.* prompt \d+\."):
        ppo.train(spec, store, ConsoleReporter(stream=None), folder, checkpoints, failing)
    assert not list(folder.iterdir())
    kept = checkpoints.load()
    assert kept is not None
    assert kept.state["recipe"]["rollout"] == 1  # the first is completed; the second was never stored
    assert "recipe/scores" not in kept.tensors


def test_prompts_that_are_too_long_are_named(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    lengths = [len(ChatEncoder(load_tokenizer(tiny_ref), 128).prompt(user("Hm" * times))) for times in (1, 2, 3)]
    spec = spec_of(tiny_ref, prompts, episodes=12, max_length=lengths[1] + 8)
    result, _reporter = train(spec, store, tmp_path / "policy")
    assert result.dropped == (
        f"4 prompts lost a part, to stay within {lengths[1] + 8} tokens with 8 new ones: 2, 5, 8, 11",
    )


@pytest.mark.parametrize("episodes", [1, 13])  # the prompt is on the sample pages only; it is trained on
def test_a_prompt_that_the_template_does_not_take_is_found_before_anything_is_loaded(
    tiny_model: Path,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    episodes: int,
) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(tiny_model, folder)
    tokenizer = load_tokenizer(str(folder))
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system prompts') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with prompts.open("a") as file:
        file.write(PromptRow(id=99, messages=({"role": "system", "content": "Be good."},)).model_dump_json() + "\n")
    monkeypatch.setattr(policy_gradient, "load_policy_and_reference", lambda *_: pytest.fail("The policy was loaded."))
    spec = spec_of(ModelRef(base=str(folder)), prompts, episodes=episodes, rollout_size=1)
    with pytest.raises(InvalidInput, match=r"does not accept .* No system prompts"):
        train(spec, store, tmp_path / "policy")


def test_cancelling_saves_nothing(tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path) -> None:
    class Cancelling(ConsoleReporter):
        def progress(self, done: int, total: int, message: str = "") -> None:
            if message == "training the policy":
                raise RunCancelled("The run was cancelled.")

    with pytest.raises(RunCancelled):
        ppo.train(spec_of(tiny_ref, prompts), store, Cancelling(stream=None), tmp_path, scorer=low_bytes)
    assert not (tmp_path / "adapter_config.json").exists()


def test_an_empty_prompts_file_is_named(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    empty = tmp_path / "nothing.jsonl"
    empty.write_text("")
    with pytest.raises(InvalidInput, match=r"nothing\.jsonl holds no prompts"):
        train(spec_of(tiny_ref, empty), store, tmp_path / "policy")
