"""The recipe of RLOO and GRPO as a whole, on a tiny model; test_ppo_recipe.py tests the code it shares with PPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.artifacts import ArtifactStore, digest_folder
from app.domain.texts import FIGURES
from app.rows import PromptRow
from app.specs import GRPOSpec, Lora, ModelRef, Optimiser, RLOOSpec, RunKind
from tests.trainer.conftest import user, write_rows
from trainer import cli
from trainer.batching.packing import Packed, pack
from trainer.checkpoints import Checkpoints
from trainer.recipes import group
from trainer.reporting import ConsoleReporter, PolicyResult, RunCancelled
from trainer.sampling.responses import Response
from trainer.service import tasks
from trainer.training.experience import Rollout

K = 4
NAMES = {
    "objective/kl", "objective/kl_per_token", "objective/kl_k3", "objective/kl_coef", "objective/scores",
    "objective/rlhf_reward", "objective/non_score_reward", "objective/entropy", "policy/approxkl_avg",
    "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "val/ratio", "val/ratio_var",
    "val/num_eos_tokens", "frac_reward_zero_std", "reward_std", "lr", "eps", "time/generation", "time/scoring",
    "time/update",
}  # fmt: skip


# The monitors' figures that depend only on texts; the others need reward models.
MONITORED = {f"monitor/{name}" for name in ("length", "finished", "variety", "alarms", *FIGURES)}


def low_bytes(responses: Sequence[Response]) -> Tensor:
    """Return the share of tokens in the lower half of the vocabulary; a random model has about 1/2."""
    return torch.tensor([sum(t < 130 for t in r.sample.tokens) / len(r.sample.tokens) for r in responses])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [PromptRow(id=i, messages=user("Hm" * (1 + i)), slices={"domain": "ab"[i % 2]}) for i in range(6)]
    return write_rows(tmp_path / "prompts.jsonl", rows)


def spec_of(kind: type[RLOOSpec] | type[GRPOSpec], ref: ModelRef, prompts: Path, **changes: Any) -> RLOOSpec | GRPOSpec:
    settings: dict[str, Any] = {
        "policy": ref,
        "reference": ref,
        "reward_models": ("unused",),
        "prompts": str(prompts),
        "optimiser": Optimiser(learning_rate=1e-3, epochs=2, batch_size=8, microbatch_size=8, warmup_ratio=0.0),
        "episodes": 24,
        "rollout_size": 12,
        "samples_per_prompt": K,
        "max_new_tokens": 8,
        "max_length": 128,
        "lora": Lora(rank=4, alpha=8),
    }
    return kind(**settings | changes)


def train(
    spec: RLOOSpec | GRPOSpec, store: ArtifactStore, folder: Path, scorer: Any = low_bytes
) -> tuple[PolicyResult, ConsoleReporter]:
    folder.mkdir()
    reporter = ConsoleReporter(stream=None)
    return group.train(spec, store, reporter, folder, scorer=scorer), reporter


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RLOOSpec, {}),
        (GRPOSpec, {"normalisation": "published", "kl_in": "loss"}),
    ],
)
def test_a_policy_learns_what_scores_well(
    tiny_ref: ModelRef,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    kind: type[RLOOSpec] | type[GRPOSpec],
    settings: dict[str, Any],
) -> None:
    changes: dict[str, Any] = {
        "lora": None,
        "optimiser": Optimiser(learning_rate=4e-3, epochs=2, batch_size=16, microbatch_size=8, warmup_ratio=0.0),
        "episodes": 320,
        "rollout_size": 32,
        "kl_coef": 0.01,
        "kl_target": None,
        "missing_eos_penalty": None,
    }
    spec = spec_of(kind, tiny_ref, prompts, **changes, **settings)
    result, reporter = train(spec, store, tmp_path / "policy")
    scores = reporter.values("objective/scores")
    assert scores[0] < 0.55
    assert sum(scores[-2:]) / 2 > 0.8
    assert result.train_rows == 320
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").config.vocab_size > 200


@pytest.mark.parametrize("kind", [RLOOSpec, GRPOSpec])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_metrics_have_the_fields_names_and_slices(
    tiny_ref: ModelRef,
    other_tiny_model: Path,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    kind: type[RLOOSpec] | type[GRPOSpec],
    kl_in: str,
) -> None:
    spec = spec_of(kind, tiny_ref, prompts, kl_in=kl_in, reference=ModelRef(base=str(other_tiny_model)))
    result, reporter = train(spec, store, tmp_path / "policy")
    names = NAMES | MONITORED | ({"loss/kl_avg"} if kl_in == "loss" else set())
    assert {m.name for m in reporter.recorded if not m.slice} == names == set(result.metrics)
    assert {m.slice for m in reporter.recorded} == {"", "domain=a", "domain=b"}
    for step in (1, 2):
        at = {m.name: m.value for m in reporter.recorded if m.step == step and not m.slice}
        leash = -at["objective/kl_coef"] * at["objective/kl"] if kl_in == "reward" else 0.0
        assert abs(at["objective/kl"]) > 0.1
        assert at["objective/non_score_reward"] == pytest.approx(leash, abs=1e-5)
        unfinished = 1 - at["val/num_eos_tokens"] / 12
        assert at["objective/rlhf_reward"] == pytest.approx(at["objective/scores"] - unfinished + leash, abs=1e-5)
    # Two minibatches (two groups and one group), twice, in each of two rollouts; the second to last of eight steps.
    assert result.metrics["lr"] == pytest.approx(1e-3 / 8)


def test_rewards_and_advantages_are_those_of_a_rollouts_groups(
    tiny_ref: ModelRef,
    other_tiny_model: Path,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accumulate, seen = group.Learner.accumulate, []

    def spy(self: group.Learner, drawn: Rollout, minibatch: Any, advantages: Tensor, beta: float) -> dict[str, float]:
        seen.append((drawn, list(minibatch), advantages, beta))
        return accumulate(self, drawn, minibatch, advantages, beta)

    monkeypatch.setattr(group.Learner, "accumulate", spy)
    spec = spec_of(
        RLOOSpec,
        tiny_ref,
        prompts,
        reference=ModelRef(base=str(other_tiny_model)),
        max_new_tokens=40,  # some finish
        length_weight=0.3,
        missing_eos="replace",
        missing_eos_penalty=2.0,
    )
    train(spec, store, tmp_path / "policy")
    drawn, _, found, beta = seen[0]
    assert beta == 0.05
    lengths = drawn.lengths.double().numpy()
    assert len(set(lengths)) > 1
    scores = drawn.scores.double().numpy() - 0.3 * (lengths - lengths.mean()) / lengths.std()
    scores = np.where(drawn.finished.numpy(), scores, -2.0)
    kl = [float((a - b)[:n].sum()) for a, b, n in zip(drawn.logps, drawn.reference_logps, drawn.lengths, strict=True)]
    rewards = (scores - 0.05 * np.array(kl)).reshape(3, K)
    expected = [[row[i] - np.delete(row, i).mean() for i in range(K)] for row in rewards]
    assert found.tolist() == pytest.approx(np.concatenate(expected), abs=1e-4)
    assert drawn.rows.view(3, K).unique(dim=1).shape == (3, 1)  # four answers to each of three prompts
    for _, minibatch, _, _ in seen:  # whole groups
        assert [i // K for i in minibatch] == [group for group in (i // K for i in minibatch[::K]) for _ in range(K)]
    assert [len(minibatch) for _, minibatch, _, _ in seen] == [8, 4] * 4


@pytest.mark.parametrize("kind", [RLOOSpec, GRPOSpec])
def test_groups_of_equal_rewards_are_left_out_and_counted(
    tiny_ref: ModelRef,
    prompts: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[RLOOSpec] | type[GRPOSpec],
) -> None:
    accumulate, trained_on = group.Learner.accumulate, []

    def spy(self: group.Learner, drawn: Rollout, minibatch: Any, *rest: Any) -> dict[str, float]:
        trained_on.append(set(drawn.rows[list(minibatch)].tolist()))
        return accumulate(self, drawn, minibatch, *rest)

    def same_to_odd_prompts(responses: Sequence[Response]) -> Tensor:
        return torch.where(torch.tensor([r.row.id % 2 == 1 for r in responses]), 1.7, low_bytes(responses))

    monkeypatch.setattr(group.Learner, "accumulate", spy)
    spec = spec_of(
        kind, tiny_ref, prompts, rollout_size=24, kl_in="loss", missing_eos_penalty=None
    )  # all six prompts at once
    _result, reporter = train(spec, store, tmp_path / "policy", same_to_odd_prompts)
    assert reporter.values("frac_reward_zero_std") == [0.5]
    assert set.union(*trained_on) == {0, 2, 4}

    trained_on.clear()
    result, reporter = train(spec, store, tmp_path / "same", lambda said: torch.full((len(said),), 1.7))
    assert reporter.values("frac_reward_zero_std") == [1]
    assert not trained_on
    assert "lr" not in result.metrics  # there were no updates, and the policy is saved
    assert (tmp_path / "same" / "adapter_model.safetensors").exists()


def test_what_does_not_fill_a_group_is_rounded_up(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(RLOOSpec, tiny_ref, prompts, episodes=22, rollout_size=5, max_new_tokens=2, missing_eos_penalty=None)
    result, reporter = train(spec, store, tmp_path / "policy")
    assert result.train_rows == 24  # in rollouts of eight
    assert len(reporter.values("objective/kl")) == 3


def test_a_prompt_stands_once_in_the_rows_of_its_answers(
    tiny_ref: ModelRef, prompts: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarded = []

    def spy(sequences: Any, *rest: Any) -> Packed:
        packed = pack(sequences, *rest)
        alone = sum(len(prompt) + len(tokens) for prompt, tokens in sequences)
        forwarded.append((packed.group_ids.max().item() + 1, len(sequences), packed.tokens / alone))
        return packed

    monkeypatch.setattr(group, "pack", spy)
    optimiser = Optimiser(learning_rate=1e-3, batch_size=12, microbatch_size=12, microbatch_tokens=4096)
    train(spec_of(GRPOSpec, tiny_ref, prompts, episodes=12, optimiser=optimiser), store, tmp_path / "policy")
    ((groups, answers, share),) = forwarded
    assert (groups, answers) == (3, 12)
    assert share < 0.6


@pytest.mark.parametrize("kind", [RLOOSpec, GRPOSpec])
def test_the_command_line_trains_against_a_reward_model(
    tiny_ref: ModelRef, reward_folder: Path, prompts: Path, tmp_path: Path, kind: type[RLOOSpec] | type[GRPOSpec]
) -> None:
    spec = spec_of(kind, tiny_ref, prompts, reward_models=(str(reward_folder),), max_new_tokens=4)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    cli.run(spec.kind, tmp_path / "spec.json", tmp_path / "out", tmp_path, cli.CheckpointOptions(None, 0.0, 2))
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert kind.model_validate_json((tmp_path / "out" / "spec.json").read_text()) == spec
    assert "frac_reward_zero_std" in (tmp_path / "out" / "metrics.jsonl").read_text()
    assert (tmp_path / "out" / "samples.jsonl").exists()


def test_every_kind_of_run_has_its_command_and_every_one_that_trains_its_recipe() -> None:
    kinds = set(get_args(RunKind)) - {
        "freeze",
        "judge",
        "revise",
    }  # these need the database and run only in the service
    assert {command.name for command in cli.app.registered_commands} == kinds | {"fetch-model", "export-reward"}
    assert set(tasks.RECIPES) == kinds - {"sample", "evaluate"}


def wordless(responses: Sequence[Response]) -> Tensor:
    """A reward that empty answers maximise: the share of characters that are neither letters nor digits."""
    return torch.tensor([sum(not c.isalnum() for c in r.text) / max(len(r.text), 1) for r in responses])


@pytest.fixture
def many_prompts(tmp_path: Path) -> Path:
    """More prompts, because no monitor raises an alarm with few prompts."""
    rows = [PromptRow(id=i, messages=user("Hm" * (1 + i)), slices={}) for i in range(16)]
    return write_rows(tmp_path / "prompts.jsonl", rows)


def emptying(ref: ModelRef, prompts: Path, **changes: Any) -> RLOOSpec | GRPOSpec:
    """Return a run whose answers soon contain no letters."""
    optimiser = Optimiser(learning_rate=4e-3, epochs=2, batch_size=32, microbatch_size=32, warmup_ratio=0.0)
    settings = {"episodes": 64 * 8, "rollout_size": 64, "kl_coef": 0.0, "kl_target": None, "lora": None}
    free = {"missing_eos_penalty": None, "optimiser": optimiser, "evaluate_every": 100}
    return spec_of(RLOOSpec, ref, prompts, **settings, **free, **changes)


class Interrupted(ConsoleReporter):
    """Ends the run when it reports a given step."""

    def __init__(self, step: int) -> None:
        super().__init__(stream=None)
        self.step = step

    def metrics(self, step: int, values: Any, slice: str = "") -> None:
        super().metrics(step, values, slice)
        if step == self.step and not slice:
            raise RunCancelled("interrupted")


def test_a_monitor_stops_a_run_which_keeps_the_last_policy_without_a_sign_also_after_an_interruption(
    tiny_ref: ModelRef, many_prompts: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    noted, _ = train(emptying(tiny_ref, many_prompts), store, tmp_path / "noted", wordless)
    alarm = next(each for each in noted.alarms if each["monitor"] == "empty")
    assert noted.train_rows == 64 * 8  # it is only noted
    assert alarm["low"] <= alarm["new"] - alarm["before"] <= alarm["high"]
    assert {example["value"] for example in alarm["examples"]} == {1.0}
    first = min(each["step"] for each in noted.alarms)

    spec = emptying(tiny_ref, many_prompts, monitors="stop")
    stopped, reporter = train(spec, store, tmp_path / "stopped", wordless)
    assert {each["step"] for each in stopped.alarms} == {first}
    assert max(metric.step for metric in reporter.recorded) == first
    good = first - 2  # the step before the alarm had the first sign
    assert f"the policy of step {good}, the last one without a sign" in " ".join(stopped.notes)
    assert stopped.metrics["monitor/empty"] == reporter.values("monitor/empty")[good - 1]

    checkpoints = Checkpoints(store, "run-good", spec, every_seconds=0, keep=100)
    for number, step in enumerate((good, first - 1)):
        folder = tmp_path / f"interrupted-{number}"
        folder.mkdir()
        with pytest.raises(RunCancelled):
            group.train(spec, store, Interrupted(step), folder, checkpoints, scorer=wordless)
    folder = tmp_path / "resumed"
    folder.mkdir()
    resumed = group.train(spec, store, ConsoleReporter(stream=None), folder, checkpoints, scorer=wordless)
    assert digest_folder(folder) == digest_folder(tmp_path / "stopped")
    assert resumed.alarms == stopped.alarms
