import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput
from app.specs import DPOSpec, Lora, ModelRef, Optimiser
from tests.trainer.conftest import separable_pairs, write_rows
from trainer.data import ChatEncoder, encode_pairs
from trainer.recipes import dpo
from trainer.reporting import ConsoleReporter, PolicyResult


def spec_of(model: ModelRef, snapshot: Path, **changes: object) -> DPOSpec:
    settings = Optimiser(learning_rate=1e-3, epochs=1, batch_size=8, microbatch_size=8)
    return DPOSpec(policy=model, reference=model, snapshot=str(snapshot), optimiser=settings).model_copy(update=changes)


def train(spec: DPOSpec, store: ArtifactStore, location: str = "models/dpo") -> tuple[PolicyResult, ConsoleReporter]:
    reporter = ConsoleReporter(stream=None)
    with store.folder(location) as staging:
        result = dpo.train(spec, store, reporter, staging)
    return result, reporter


def plain_logps(folder: str, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence log-probs by transformers' own loss, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logps = []
    for pair in encode_pairs(rows, ChatEncoder(tokenizer, 512)).train:
        for prompt, completion in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*prompt, *completion]])
            labels = torch.tensor([[-100] * len(prompt) + list(completion)])
            with torch.no_grad():
                logps.append(-model(input_ids=ids, labels=labels).loss * len(completion))
    return torch.stack(logps[::2]), torch.stack(logps[1::2])


def test_raises_the_margin_and_the_saved_policy_has_it_in_plain_transformers(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    result, reporter = train(spec_of(tiny_ref, separable_snapshot), store)
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    names |= {"logps/rejected", "loss"}
    assert {m.name for m in reporter.recorded} == names | {"grad_norm", "lr"} | {f"eval_{name}" for name in names}

    # At the start the policy is its reference: no margin, a loss of log 2.
    start, end = reporter.values("eval_rewards/margins")
    assert start == 0
    assert reporter.values("eval_loss")[0] == pytest.approx(math.log(2))
    assert reporter.values("loss")[0] == pytest.approx(math.log(2), abs=1e-3)
    assert end > 0.5
    assert reporter.last("eval_rewards/accuracies") > 0.9
    assert reporter.last("eval_rewards/accuracies", "domain=stone") > 0.9
    assert result.metrics["eval_rewards/margins"] == end

    heldout = [row.model_copy(update={"split": "train"}) for row in separable_pairs(160, 40)[:40]]
    chosen, rejected = plain_logps(str(store.resolve("models/dpo")), heldout)
    base_chosen, base_rejected = plain_logps(tiny_ref.base, heldout)
    assert (0.1 * ((chosen - rejected) - (base_chosen - base_rejected))).mean().item() == pytest.approx(end, abs=1e-3)
    assert reporter.last("eval_logps/chosen") == pytest.approx(chosen.mean().item(), abs=1e-2)


def test_equal_specs_give_equal_files_and_another_seed_does_not(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(30, 0))
    for location, seed in (("models/a", 0), ("models/b", 0), ("models/c", 1)):
        train(spec_of(tiny_ref, snapshot, seed=seed), store, location)
    digests = [digest_folder(store.resolve(f"models/{name}")) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_microbatches_change_nothing(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    rows = [row.model_copy(update={"weight": 1 + row.comparison_id % 3}) for row in separable_pairs(30, 4)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    runs = []
    for size, tokens in ((8, 4096), (3, 4096), (8, 300)):
        settings = Optimiser(learning_rate=1e-3, epochs=1, microbatch_size=size, microbatch_tokens=tokens)
        runs.append(train(spec_of(tiny_ref, snapshot, optimiser=settings), store)[1])
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_loss"):
        for run in runs[1:]:
            assert run.values(name) == pytest.approx(runs[0].values(name), rel=1e-3, abs=1e-3)


def test_continues_an_adapter_against_an_earlier_policy(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    first, reporter = train(spec_of(tiny_ref, separable_snapshot), store, "models/first")
    policy = ModelRef(base=tiny_ref.base, adapter="models/first")
    # Against the base the second round starts where the first ended; against the first policy it starts at no margin.
    against_base = spec_of(tiny_ref, separable_snapshot, policy=policy)
    against_first = spec_of(tiny_ref, separable_snapshot, policy=policy, reference=policy)
    _, base_reporter = train(against_base, store, "models/second")
    _, first_reporter = train(against_first, store, "models/third")
    margin = reporter.last("eval_rewards/margins")
    assert base_reporter.values("eval_rewards/margins")[0] == pytest.approx(margin, rel=1e-3)
    assert first_reporter.values("eval_rewards/margins")[0] == 0
    assert first_reporter.last("eval_rewards/margins") > 0
    assert first.train_rows == 120


def test_ties_are_left_out_and_full_weights_train(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    tied = [row.model_copy(update={"p_b": 0.5, "comparison_id": 900}) for row in separable_pairs(1, 0)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(24, 0) + tied)
    settings = Optimiser(learning_rate=1e-4)
    result, _ = train(spec_of(tiny_ref, snapshot, lora=None, optimiser=settings), store)
    assert result.train_rows == 24
    assert (store.resolve("models/dpo") / "model.safetensors").exists()


def test_too_few_pairs_are_refused(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(12, 0))
    with pytest.raises(InvalidInput, match=r"DPO needs at least 20 .* there are 12"):
        train(spec_of(tiny_ref, snapshot, lora=Lora(rank=2)), store)
