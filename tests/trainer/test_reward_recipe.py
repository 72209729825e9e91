from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput
from app.specs import Lora, ModelRef, Optimiser, RewardSpec
from tests.trainer.conftest import separable_pairs, write_rows
from trainer.data import ChatEncoder, collate, encode_pairs, read_pairs
from trainer.modeling import load_reward_model, new_reward_model, seed_everything, trainable_parameters
from trainer.recipes import reward
from trainer.reporting import ConsoleReporter, RewardResult, RunCancelled, TrainingDiverged


def spec_of(model: ModelRef, snapshot: Path, **changes: object) -> RewardSpec:
    settings = Optimiser(learning_rate=3e-3, epochs=2, batch_size=8, microbatch_size=8)
    return RewardSpec(backbone=model, snapshot=str(snapshot), optimiser=settings).model_copy(update=changes)


def train(spec: RewardSpec, store: ArtifactStore, location: str = "models/rm") -> tuple[RewardResult, ConsoleReporter]:
    reporter = ConsoleReporter(stream=None)
    with store.folder(location) as staging:
        result = reward.train(spec, store, reporter, staging)
    return result, reporter


def test_learns_a_preference_and_scores_alike_in_plain_transformers(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    result, reporter = train(spec_of(tiny_ref, separable_snapshot), store)
    assert result.eval_accuracy is not None
    assert result.eval_accuracy > 0.9
    assert (result.train_pairs, result.heldout_pairs, result.dropped) == (120, 40, ())
    assert reporter.last("eval_accuracy") == result.eval_accuracy
    assert reporter.last("eval_accuracy", "domain=fruit") > 0.9
    assert {m.name for m in reporter.recorded if not m.name.startswith("eval_")} == {
        *("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "grad_norm", "lr")
    }
    assert 0 <= reporter.last("eval_ece") <= 1
    assert -1 <= reporter.last("eval_length_bias") <= 1
    assert len(reporter.values("loss")) == 2 * 15

    folder = store.resolve("models/rm")
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, _ = load_reward_model(folder)
    pairs = encode_pairs(read_pairs(separable_snapshot), ChatEncoder(tokenizer, 512))
    with torch.no_grad():
        # Mean 0 and standard deviation 1 over the training responses.
        sequences = [s for pair in pairs.train for s in (pair.chosen, pair.rejected)]
        rewards = model(collate(sequences, tokenizer.pad_token_id))
        assert rewards.mean().item() == pytest.approx(0, abs=1e-3)
        assert rewards.std().item() == pytest.approx(1, abs=1e-3)
        batch = collate(sequences[:8], tokenizer.pad_token_id)
        scores = plain(input_ids=batch.input_ids, attention_mask=batch.valid_mask.long()).logits[:, 0]
        torch.testing.assert_close(scores - plain.config.reward_offset, rewards[:8], atol=1e-4, rtol=1e-4)


def test_equal_specs_give_equal_files_and_another_seed_does_not(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(30, 5))
    spec = spec_of(tiny_ref, snapshot, optimiser=Optimiser(learning_rate=3e-3, epochs=1))
    for location in ("models/a", "models/b"):
        train(spec, store, location)
    train(spec.model_copy(update={"seed": 1}), store, "models/c")
    digests = [digest_folder(store.resolve(f"models/{name}")) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_microbatches_change_nothing(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    rows = [row.model_copy(update={"weight": 1 + row.comparison_id % 3}) for row in separable_pairs(40, 0)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    runs = []
    for size, tokens in ((8, 4096), (3, 4096), (8, 300)):
        settings = Optimiser(learning_rate=3e-3, epochs=1, microbatch_size=size, microbatch_tokens=tokens)
        runs.append(train(spec_of(tiny_ref, snapshot, optimiser=settings), store)[1])
    for name in ("loss", "grad_norm", "accuracy", "margin"):
        for run in runs[1:]:
            assert run.values(name) == pytest.approx(runs[0].values(name), abs=1e-3)


def test_the_loss_of_the_first_step_by_hand(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """One batch holds every row, so its loss is a weighted mean over the snapshot at the initial weights."""
    rows = [row.model_copy(update={"weight": 1 + row.comparison_id % 3}) for row in separable_pairs(24, 0)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    settings = Optimiser(learning_rate=1e-3, batch_size=24, microbatch_size=24)
    _, reporter = train(spec_of(tiny_ref, snapshot, optimiser=settings, centering=0.01), store)

    seed_everything(0)
    model, _ = new_reward_model(tiny_ref, Lora())
    tokenizer = AutoTokenizer.from_pretrained(tiny_ref.base)
    total = torch.zeros(())
    for pair in encode_pairs(rows, ChatEncoder(tokenizer, 512)).train:
        c, r = (model(collate([sequence], tokenizer.pad_token_id))[0] for sequence in (pair.chosen, pair.rejected))
        loss = -0.95 * torch.log(1 / (1 + torch.exp(r - c))) - 0.05 * torch.log(1 / (1 + torch.exp(c - r)))
        total = total + pair.row.weight * (loss + 0.01 * (c + r) ** 2)
    total = total / sum(row.weight for row in rows)
    assert reporter.values("loss")[0] == pytest.approx(total.item(), abs=1e-5)
    gradients = torch.autograd.grad(total, trainable_parameters(model))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert reporter.values("grad_norm")[0] == pytest.approx(norm.item(), rel=1e-4)


def test_ties_pull_rewards_together_only_as_soft_labels(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = separable_pairs(30, 0) + [
        row.model_copy(update={"comparison_id": 99, "p_b": 0.5, "preference": 0.0}) for row in separable_pairs(1, 0)
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    settings = Optimiser(learning_rate=1e-3)
    assert train(spec_of(tiny_ref, snapshot, optimiser=settings), store)[0].train_pairs == 31
    hard = spec_of(tiny_ref, snapshot, optimiser=settings, soft_labels=False)
    assert train(hard, store)[0].train_pairs == 30


def test_without_held_out_rows_there_is_no_accuracy_to_report(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(20, 0))
    result, reporter = train(spec_of(tiny_ref, snapshot, optimiser=Optimiser(learning_rate=1e-3)), store)
    assert result.eval_accuracy is None
    assert not [metric for metric in reporter.recorded if metric.name.startswith("eval_")]


@pytest.mark.parametrize(("rows", "decided"), [(separable_pairs(19, 0), 19), (separable_pairs(60, 50), 10)])
def test_too_few_pairs_are_refused_before_a_model_is_loaded(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path, rows: list, decided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward, "new_reward_model", None)
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    with pytest.raises(InvalidInput, match=f"at least 20 .* there are {decided} "):
        train(spec_of(tiny_ref, snapshot), store)
    assert not store.exists("models/rm")


def test_a_diverging_run_says_so_and_saves_nothing(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    settings = Optimiser(learning_rate=1.0, epochs=8, warmup_ratio=0, max_grad_norm=1e30)
    with pytest.raises(TrainingDiverged, match=r"nan|inf|same reward"):
        train(spec_of(tiny_ref, separable_snapshot, optimiser=settings, centering=1e30), store)
    assert not store.exists("models/rm")


def test_cancelling_saves_nothing(tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore) -> None:
    class Cancelling(ConsoleReporter):
        def progress(self, done: int, total: int, message: str = "") -> None:
            if done == 2:
                raise RunCancelled("Cancelled.")

        def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
            assert step <= 2

    with pytest.raises(RunCancelled), store.folder("models/rm") as staging:
        reward.train(spec_of(tiny_ref, separable_snapshot), store, Cancelling(stream=None), staging)
    assert not store.exists("models/rm")
