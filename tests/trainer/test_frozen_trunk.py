"""A reward model with heads on a frozen trunk: the fit, the features, and the same score wherever it is computed."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.errors import InvalidInput, ModelUnavailable
from app.specs import ModelRef, RewardSpec
from tests.trainer.conftest import separable_pairs, write_rows
from tests.trainer.test_reward_folder import ANSWERS, QUESTION, by_its_card, responses
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.packing import pack
from trainer.evaluation.figures import reward_heads, reward_models_scorer
from trainer.models.loading import load_tokenizer
from trainer.recipes import reward
from trainer.reporting import ConsoleReporter, RewardResult
from trainer.reward import head_fitting
from trainer.reward.cross_fitting import Folds
from trainer.reward.model import export_reward_model, frozen_reward_model, load_reward_model
from trainer.reward.objective import Element, RewardObjective, Targets
from trainer.training.critics import RewardCritic


def spec_of(model: ModelRef, snapshot: Path | str = "", **changes: object) -> RewardSpec:
    return RewardSpec(backbone=model, snapshot=str(snapshot), folds=3, centering=0.0).model_copy(update=changes)


def objective_of(model: ModelRef, features: int, members: int = 1, ties: str = "half") -> RewardObjective:
    """Return the objective of heads that read this number of features."""
    made = frozen_reward_model(model.base, members=members)
    for member in range(members):
        made.scores[member] = torch.nn.Linear(features, 1, bias=False)
    return RewardObjective(made, ties, 0.2)


def pairs_in_order(count: int) -> list[Element]:
    return [Element((TokenSequence([1]), TokenSequence([2])), (i,), ((0, 1),)) for i in range(count)]


def targets_of(outcomes: Tensor) -> Targets:
    """Return targets (N, 3) for one head; every pair has weight 1."""
    n = len(outcomes)
    return Targets(outcomes[:, None], torch.zeros(n, 1), torch.ones(n, 1), torch.ones(n, 1))


def train(spec: RewardSpec, store: ArtifactStore, out: Path) -> RewardResult:
    out.mkdir()
    return reward.train(spec, store, ConsoleReporter(stream=None), out)


# ---- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [5, 400])  # fewer and more than there are responses
def test_heads_are_at_the_minimum(tiny_ref: ModelRef, features: int) -> None:
    """The gradient is 0 there: ridge w = sum over pairs of (p - sigmoid(d)) (x_chosen - x_rejected)."""
    torch.manual_seed(0)
    x = torch.randn(60, features) * torch.rand(features) * 10 + 3
    p = torch.rand(30)
    objective = objective_of(tiny_ref, features)
    targets = targets_of(torch.stack([p, 1 - p, torch.zeros(30)], 1))
    spec = spec_of(tiny_ref, ridge=0.7)
    head_fitting.fit(objective, spec, Folds((), 1), pairs_in_order(30), range(30), x, [targets])

    scale = x.std(0, correction=0) * math.sqrt(features)
    inputs, w = (x / scale).double(), (objective.model.scores[0].weight.detach()[0] * scale).double()
    differences = inputs[0::2] - inputs[1::2]
    errors = p.double() - torch.sigmoid(differences @ w)
    torch.testing.assert_close(0.7 * w, differences.T @ errors, atol=1e-4, rtol=1e-4)
    assert w.norm() > 0.1


def test_no_member_learns_from_its_own_fold(tiny_ref: ModelRef) -> None:
    torch.manual_seed(0)
    x, outcomes = torch.randn(24, 6), torch.tensor([[1.0, 0.0, 0.0]] * 12)
    turned = outcomes.clone()
    turned[:4] = torch.tensor([0.0, 1.0, 0.0])  # the first fold's rows
    folds, weights = Folds((0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2), 3), []
    for said in (outcomes, turned):
        objective = objective_of(tiny_ref, 6, members=3)
        head_fitting.fit(objective, spec_of(tiny_ref), folds, pairs_in_order(12), range(12), x, [targets_of(said)] * 3)
        weights.append([head.weight.detach().clone() for head in objective.model.scores])
    same = [torch.equal(a, b) for a, b in zip(*weights, strict=True)]
    assert same == [True, False, False]


def test_equal_responses_tie_as_often_as_people_said(tiny_ref: ModelRef) -> None:
    """If rewards are equal, Davidson's model says P(tie) = nu / (2 + nu): 40% at nu = 4 / 3."""
    spec = spec_of(tiny_ref, ties="davidson")
    objective = objective_of(tiny_ref, 3, ties="davidson")
    targets = targets_of(torch.tensor([[0.3, 0.3, 0.4]] * 10))
    head_fitting.fit(objective, spec, Folds((), 1), pairs_in_order(10), range(10), torch.ones(20, 3), [targets])
    tie = objective.tie()
    assert tie is not None
    assert tie.tolist() == pytest.approx([math.log(4 / 3)], abs=1e-5)


def test_of_very_many_comparisons_5000_are_fitted_to() -> None:
    drawn = head_fitting.subset(12_000, seed=1)
    assert len(set(drawn)) == 5000
    assert drawn == sorted(drawn)
    assert drawn != head_fitting.subset(12_000, seed=2)
    assert head_fitting.subset(70, seed=1) == list(range(70))


# ---- the recipe ------------------------------------------------------------------------------------------------------


def test_one_text_has_one_score_wherever_it_is_read(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """PPO and evaluation, sampling, one batch, and the card's code on plain transformers give the same score."""
    rows = write_rows(tmp_path / "rows.jsonl", separable_pairs(60, 10))
    result = train(spec_of(tiny_ref, rows, doubt=5.0), store, tmp_path / "rm")
    assert (result.members, result.kept_epoch, result.train_pairs) == (3, 0, 50)
    assert result.eval_accuracy is not None
    assert result.eval_accuracy > 0.9  # the embeddings are enough to tell apples from rocks

    model, tokenizer = load_reward_model(tmp_path / "rm")
    encoder = ChatEncoder(tokenizer, 512)
    sequences = [TokenSequence(encoder.prompt(QUESTION), encoder.completion(text)) for text in ANSWERS]
    expected = model.score(model(pack(sequences, tokenizer.pad_token_id, model.share))).tolist()
    assert max(expected) - min(expected) > 0.5
    scorer = reward_models_scorer([tmp_path / "rm"], 512)
    assert scorer(responses()).tolist() == pytest.approx(expected, abs=1e-4)
    heads = reward_heads([tmp_path / "rm"], 512)(responses())
    assert heads.shape == (len(ANSWERS), 3)
    assert heads.mean(-1).tolist() == pytest.approx(expected, abs=1e-4)
    assert by_its_card(tmp_path / "rm", tiny_ref.base, "float32") == pytest.approx(expected, abs=1e-4)

    one, _ = load_reward_model(tmp_path / "rm", member=1)
    alone = one(pack(sequences, tokenizer.pad_token_id, one.share))[:, 0]
    assert alone.tolist() == pytest.approx(heads[:, 1].tolist(), abs=1e-4)


def test_scores_have_mean_0_and_deviation_1_and_runs_repeat(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", separable_pairs(60, 0))
    for name in ("first", "second"):
        train(spec_of(tiny_ref, rows, doubt=0.0), store, tmp_path / name)  # doubt would lower some scores
    first, second = ((tmp_path / name / "heads.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert not list((tmp_path / "first").rglob("adapter*"))
    model, tokenizer = load_reward_model(tmp_path / "first")
    encoder = ChatEncoder(tokenizer, 512)
    sequences = [
        TokenSequence(encoder.prompt(row.messages), encoder.completion(text))
        for row in separable_pairs(60, 0)
        for text in (row.response_a, row.response_b)
    ]
    rewards = model(pack(sequences, tokenizer.pad_token_id, model.share))
    score = model.score(rewards)
    assert [float(score.mean()), float(score.std())] == pytest.approx([0, 1], abs=1e-3)


def test_the_heads_read_the_base_alone(
    tiny_ref: ModelRef, other_tiny_model: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", separable_pairs(40, 0))
    train(spec_of(tiny_ref, rows), store, tmp_path / "rm")
    record = json.loads((tmp_path / "rm/base.json").read_text())
    (tmp_path / "rm/base.json").write_text(json.dumps(record | {"location": str(other_tiny_model)}))
    with pytest.raises(ModelUnavailable, match="made for other weights"):
        load_reward_model(tmp_path / "rm")


def test_what_heads_alone_cannot_be_is_said(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", separable_pairs(40, 0))
    train(spec_of(tiny_ref, rows), store, tmp_path / "rm")
    with pytest.raises(ModelUnavailable, match="cannot be the critic"):
        RewardCritic(tmp_path / "rm", load_tokenizer(tiny_ref), None, torch.float32)
    with pytest.raises(InvalidInput, match="plain transformers cannot load"):
        export_reward_model(tmp_path / "rm", tmp_path / "out")
