"""Comparison with the previous policy: differences by arithmetic, and the recipe against separate evaluations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from app.artifacts import ArtifactStore
from app.domain.monitors import findings
from app.rows import PromptRow
from app.specs import EvaluateSpec, Generation, ModelRef
from tests.trainer.conftest import user, write_rows
from trainer.evaluation import premises
from trainer.evaluation.comparing import compare
from trainer.recipes import evaluate
from trainer.recipes.sample import Completion
from trainer.reporting import ConsoleReporter
from trainer.sampling.responses import Response, Sample, sample_seed


def said(prompt: int, text: str, tokens: int, finished: bool = True) -> Response:
    row = PromptRow(id=prompt, messages=user("Q"), slices={"domain": "even" if prompt % 2 == 0 else "odd"})
    return Response(row, 0, 0, [5], Sample([7] * tokens, [], finished), text)


def test_differences_are_of_prompts_and_their_interval_is_students() -> None:
    rng = np.random.default_rng(0)
    scores, before_scores = rng.normal(0.5, 1, (10, 2)), rng.normal(0, 1, (10, 2))
    new = [said(prompt, "Yes.", 3) for prompt in range(10) for _ in range(2)]
    before = [said(prompt, "I'm sorry.", 5, finished=prompt > 0) for prompt in range(10) for _ in range(2)]
    order = rng.permutation(20)  # an order as after gathering from several processes
    compared = compare(
        [new[i] for i in order],
        torch.tensor(scores.ravel()[order]),
        before,
        torch.tensor(before_scores.ravel()),
    )
    differences = scores.mean(1) - before_scores.mean(1)
    half = 2.262157 * differences.std(ddof=1) / 10**0.5
    everything = compared[""]
    assert everything["eval_difference/scores"] == pytest.approx(differences.mean())
    assert everything["eval_difference/scores_low"] == pytest.approx(differences.mean() - half, abs=1e-3)
    assert everything["eval_difference/scores_high"] == pytest.approx(differences.mean() + half, abs=1e-3)
    assert everything["eval_before/scores"] == pytest.approx(before_scores.mean())
    named = {name: everything[f"eval_before/{name}"] for name in ("length", "finished", "repetition", "refusals")}
    assert named == pytest.approx({"length": 5, "finished": 0.9, "repetition": 0, "refusals": 1})
    assert compared["domain=even"]["eval_difference/scores"] == pytest.approx(differences[::2].mean())
    wins = (scores[:, :, None] > before_scores[:, None, :]).mean((1, 2))
    assert everything["eval_wins"] == pytest.approx(wins.mean())
    assert everything["eval_wins_low"] == pytest.approx(wins.mean() - 2.262157 * wins.std(ddof=1) / 10**0.5, abs=1e-3)
    assert everything["eval_difference/length_at_reward"] == pytest.approx(-2)  # length does not depend on reward
    few = compare(new[:8], torch.tensor(scores.ravel()[:8]), before[:8], torch.tensor(before_scores.ravel()[:8]))
    assert "eval_difference/scores_low" not in few[""]  # four prompts


def test_length_at_equal_reward_leaves_out_what_reward_explains() -> None:
    """In both policies, a unit of reward comes with two tokens. The new one has 3 more rewards and 10 more tokens."""
    before_scores, scores = (torch.tensor([0.0, 1.0] * 8) + shift for shift in (0, 3))
    before = [said(i // 2, "Yes.", 5 + 2 * int(score)) for i, score in enumerate(before_scores)]
    new = [said(i // 2, "Yes.", 15 + 2 * (int(score) - 3)) for i, score in enumerate(scores)]
    found = compare(new, scores, before, before_scores)[""]
    assert found["eval_difference/length_at_reward"] == pytest.approx(10 - 2 * 3)
    assert found["eval_length_at_reward"] == pytest.approx(6 + 4)


def test_agreement_with_false_premises_is_a_share_of_probes() -> None:
    new, before, reward = [1.0] * 20 + [-1.0] * 12, [1.0] * 8 + [-1.0] * 24, [0.5] * 31 + [0.0]
    found = premises.measured(new, before, reward)
    assert found["eval_premises"] == pytest.approx(20 / 32)
    assert found["eval_difference/premises"] == pytest.approx(12 / 32)
    assert found["eval_difference/premises_reward"] == pytest.approx(31.5 / 32 - 0.5)
    states = {each.monitor.name: each.state for each in findings({"": found | {"eval_prompts": 20.0}})}
    assert (states["premises"], states["premises_reward"]) == ("look", "look")
    assert [example["value"] for example in premises.worst([0.1, -1.0, 0.3], 2)] == [0.3, 0.1]
    assert len(premises.probes()) == 32


def test_both_answer_the_same_prompts_from_the_same_seeds(
    tiny_ref: ModelRef, other_tiny_model: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = [PromptRow(id=i, messages=user("q" * (1 + 5 * i))) for i in range(6)]
    spec = EvaluateSpec(
        policy=tiny_ref,
        before=ModelRef(base=str(other_tiny_model)),
        reference=tiny_ref,
        reward_models=("scripted",),
        prompts=str(write_rows(tmp_path / "prompts.jsonl", rows)),
        generation=Generation(samples_per_prompt=2, max_new_tokens=10, batch_size=4),
        max_length=128,
        seed=5,
    )
    asked: list[list[Response]] = []

    def by_length(responses: Sequence[Response]) -> torch.Tensor:
        asked.append(list(responses))
        return torch.tensor([float(len(response.text)) for response in responses])

    def evaluated(spec: EvaluateSpec) -> tuple[evaluate.EvaluateResult, list[Completion]]:
        completions: list[Completion] = []
        return (
            evaluate.evaluate(spec, store, ConsoleReporter(stream=None), completions.extend, by_length),
            completions,
        )

    both, stored = evaluated(spec)
    new, before, probes = asked
    assert len(probes) == 64  # 32 pairs of a truthful and a sycophantic answer
    for responses in (new, before):
        assert {(r.row.id, r.sample_index, r.seed) for r in responses} == {
            (i, k, sample_seed(5, "evaluate", i, k)) for i in range(6) for k in range(2)
        }
    assert [c.text for c in stored] == [r.text for r in new]  # only the policy's responses
    of_before, _ = evaluated(spec.model_copy(update={"policy": spec.before, "before": None}))
    of_new, _ = evaluated(spec.model_copy(update={"before": None}))
    assert both.metrics["eval_before/scores"] == of_before.metrics["eval_objective/scores"]
    assert both.metrics["eval_before/length"] == of_before.metrics["eval_length"]
    assert of_new.metrics.items() <= both.metrics.items()
    assert both.metrics["eval_difference/scores"] == pytest.approx(
        of_new.metrics["eval_objective/scores"] - of_before.metrics["eval_objective/scores"]
    )
    assert both.tokens == of_new.tokens + of_before.tokens

    same, _ = evaluated(spec.model_copy(update={"before": spec.policy}))
    assert [same.metrics[f"eval_difference/scores{bound}"] for bound in ("", "_low", "_high")] == [0, 0, 0]
