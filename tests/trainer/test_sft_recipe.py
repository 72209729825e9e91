"""Supervised fine-tuning learns, equals TRL's trainer step by step, and reports the rows that it left out."""

import math
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput
from app.rows import DemonstrationRow
from app.specs import Lora, ModelRef, Optimiser, SFTSpec
from tests.trainer.conftest import build_short_model, user, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import encode_demonstrations
from trainer.checkpoints import Checkpoints
from trainer.models.loading import PLAIN_CHAT_TEMPLATE, load_causal_lm, load_tokenizer
from trainer.models.policy import Policy
from trainer.recipes import sft
from trainer.reporting import ConsoleReporter, PolicyResult, TrainingDiverged

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import SFTConfig, SFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def demonstrations(count: int = 40, heldout: int = 8, seed: int = 0) -> list[DemonstrationRow]:
    """Return answers of many lengths with the same beginning."""
    generator = random.Random(seed)
    return [
        DemonstrationRow(
            id=i + 1,
            messages=user(f"{i}. " + "Why? " * generator.randint(1, 6)),
            response="Because apples " + "fall " * generator.randint(0, 5),
            split="heldout" if i < heldout else "train",
            slices={"domain": "fruit" if i % 2 else "stone"},
        )
        for i in range(count)
    ]


class Trained:
    """A run of the recipe on rows, in a new folder."""

    def __init__(self, folder: Path, model: Path, rows: list[DemonstrationRow], **changes: Any) -> None:
        folder.mkdir()
        write_rows(folder / "rows.jsonl", rows)
        changes = {"optimiser": Optimiser(learning_rate=5e-3, epochs=2)} | changes
        self.spec = SFTSpec(policy=ModelRef(base=str(model)), demonstrations="rows.jsonl", **changes)
        self.store, self.folder = ArtifactStore(folder), folder / "policy"
        self.folder.mkdir()
        self.reporter = ConsoleReporter(stream=None)

    def run(self, checkpoints: Checkpoints | None = None) -> PolicyResult:
        return sft.train(self.spec, self.store, self.reporter, self.folder, checkpoints)


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_it_learns_what_the_demonstrations_show(tmp_path: Path, tiny_model: Path, lora: Lora | None) -> None:
    trained = Trained(tmp_path / "run", tiny_model, demonstrations(), lora=lora)
    result = trained.run()
    losses = trained.reporter.values("eval_loss")
    assert losses[0] == pytest.approx(math.log(260), rel=0.1)  # random weights: the logarithm of the vocabulary
    assert losses[-1] < 0.7 * losses[0]
    assert trained.reporter.values("eval_mean_token_accuracy")[-1] > 0.2
    assert result.metrics["eval_perplexity"] == pytest.approx(math.exp(losses[-1]))
    assert result.metrics["loss"] == trained.reporter.last("loss")
    assert result.train_rows == 32
    assert result.notes == ()
    assert {m.slice for m in trained.reporter.recorded} == {"", "domain=fruit", "domain=stone"}
    assert {m.name for m in trained.reporter.recorded if m.step == 1 and not m.slice} == {
        *("loss", "mean_token_accuracy", "grad_norm", "lr", "num_tokens")
    }
    loaded = AutoModelForCausalLM.from_pretrained(trained.folder)
    assert torch.isfinite(next(loaded.parameters())).all()


@pytest.mark.parametrize("packing", [True, False])
def test_every_step_is_trls(tmp_path: Path, tiny_model: Path, packing: bool) -> None:
    """Full weights, 24 rows per step, three steps: losses, gradient norms, accuracies, tokens and final weights."""
    rows = demonstrations(24, 0)
    optimiser = Optimiser(
        learning_rate=1e-3, epochs=3, batch_size=24, microbatch_size=5, warmup_ratio=0, precision="float32"
    )
    trained = Trained(tmp_path / "run", tiny_model, rows, lora=None, packing=packing, optimiser=optimiser)
    result = trained.run()

    tokenizer = load_tokenizer(str(tiny_model))
    encoded = encode_demonstrations(rows, ChatEncoder(tokenizer, 1024)).train
    assert all(row.sequence.completion[-1] == tokenizer.eos_token_id for row in encoded)
    dataset = Dataset.from_list(
        [
            {
                "input_ids": [*prompt, *completion],
                "completion_mask": [0] * len(prompt) + [1] * len(completion),
            }
            for prompt, completion in (row.sequence for row in encoded)
        ]
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=dataset,
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            completion_only_loss=True,
            per_device_train_batch_size=24,
            num_train_epochs=3,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            warmup_steps=0,
            adam_epsilon=optimiser.eps,
            weight_decay=0.0,
            max_grad_norm=optimiser.max_grad_norm,
            max_length=None,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(theirs) == 3
    for name in ("loss", "grad_norm", "mean_token_accuracy", "num_tokens"):
        assert trained.reporter.values(name) == pytest.approx([entry[name] for entry in theirs], rel=1e-4), name
    assert result.tokens == theirs[-1]["num_tokens"]
    ours = AutoModelForCausalLM.from_pretrained(trained.folder).state_dict()
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=2e-5)


def test_rows_count_by_weight_and_by_token(tmp_path: Path, tiny_model: Path) -> None:
    """Arithmetic on transformers' own loss of each row: sum w_i nll_i / sum w_i n_i."""
    rows = [row.model_copy(update={"weight": 0.25 * (i % 4 + 1)}) for i, row in enumerate(demonstrations(20, 0))]
    trained = Trained(tmp_path / "run", tiny_model, rows, optimiser=Optimiser(learning_rate=1e-3, batch_size=20))
    trained.run()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    encoded = encode_demonstrations(rows, ChatEncoder(load_tokenizer(str(tiny_model)), 1024)).train
    total = tokens = 0.0
    for (prompt, completion), row in encoded:
        labels = torch.tensor([[-100] * len(prompt) + list(completion)])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([[*prompt, *completion]]), labels=labels).loss.item()
        total += row.weight * mean * len(completion)
        tokens += row.weight * len(completion)
    assert trained.reporter.values("loss")[0] == pytest.approx(total / tokens, rel=1e-5)


def test_packed_rows_give_the_same_numbers(tiny_model: Path) -> None:
    ref = ModelRef(base=str(tiny_model))
    rows = encode_demonstrations(demonstrations(), ChatEncoder(load_tokenizer(ref), 1024)).train
    model = Policy(load_causal_lm(ref))
    assert model.share
    apart, packed = (sft.token_sums(model, rows, share, 2, 2048) for share in (False, True))
    torch.testing.assert_close(apart, packed, rtol=1e-5, atol=1e-4)


def test_what_cannot_be_learned_from_is_named(tmp_path: Path, tiny_model: Path) -> None:
    rows = demonstrations(25, 0)
    rows[3] = rows[3].model_copy(update={"response": "apples " * 20})
    rows[5] = rows[5].model_copy(update={"weight": 0.0})
    rows[7] = rows[7].model_copy(update={"response": " "})
    trained = Trained(tmp_path / "run", tiny_model, rows, max_length=64)
    # Bytes are tokens. The template adds 19 tokens around the question, and 1 after the answer.
    long = [str(r.id) for r in rows if r.weight and 19 + len(r.messages[0]["content"]) + len(r.response) + 1 > 64]
    assert sorted(trained.run().dropped) == [
        "1 demonstrations are longer than 64 tokens without their prompt: 4",
        "1 demonstrations have an empty answer: 8",
        "1 demonstrations have weight 0: 6",
        f"{len(long) - 1} demonstrations lost a part of their prompt, to stay within 64 tokens: "
        + ", ".join(number for number in long if number != "4"),
    ]
    few = Trained(tmp_path / "few", tiny_model, rows[:22], max_length=64)
    with pytest.raises(InvalidInput, match=r"at least 20 .* there are 19\. .*1 demonstrations are longer than 64"):
        few.run()
    assert not list(few.folder.iterdir())


@pytest.mark.parametrize("heldout", [0, 4])
def test_a_policy_that_the_last_step_broke_is_not_saved(tmp_path: Path, tiny_model: Path, heldout: int) -> None:
    """No loss is computed after the last step, so only the measurements show it."""
    settings = Optimiser(learning_rate=1, epochs=1, batch_size=20, warmup_ratio=0)
    settings = settings.model_copy(update={"learning_rate": 1e25})
    trained = Trained(tmp_path / "run", tiny_model, demonstrations(20 + heldout, heldout), optimiser=settings)
    with pytest.raises(TrainingDiverged, match="gives NaN or infinite log-probs"):
        trained.run()
    assert not list(trained.folder.iterdir())


def test_a_model_with_few_positions_reads_no_more(tmp_path: Path) -> None:
    """GPT-2 has a table of positions, so longer sequences would end the run with an error, whatever max_length is."""
    build_short_model(tmp_path / "model", positions=60)
    rows = demonstrations(25, 0)
    rows[3] = rows[3].model_copy(update={"response": "apples " * 20})
    rows[5] = rows[5].model_copy(update={"messages": user("Why? " * 20)})
    trained = Trained(tmp_path / "run", tmp_path / "model", rows, lora=None)
    result = trained.run()
    assert "1 demonstrations are longer than 60 tokens without their prompt: 4" in result.dropped
    [cut] = [sentence for sentence in result.dropped if "lost a part of their prompt" in sentence]
    assert "within 60 tokens" in cut
    assert " 6," in cut
    assert result.train_rows == 24


def test_a_plain_chat_template_is_told(tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(model)
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    trained = Trained(tmp_path / "run", model, demonstrations(22, 2))
    (note,) = trained.run().notes
    assert "no chat template" in note
    assert note in (trained.folder / "README.md").read_text()
    assert "has no chat template" in caplog.text
    assert AutoTokenizer.from_pretrained(trained.folder).chat_template == PLAIN_CHAT_TEMPLATE


class Interrupted(Exception):
    pass


class Interrupting(ConsoleReporter):
    """Ends the run after a step, without a chance to clean up."""

    def __init__(self, step: int) -> None:
        super().__init__(stream=None)
        self.step = step

    def progress(self, done: int, total: int, message: str = "") -> None:
        if done >= self.step and message.startswith("training"):
            raise Interrupted


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, tiny_model: Path) -> None:
    whole = Trained(tmp_path / "whole", tiny_model, demonstrations())
    expected = whole.run()
    again = Trained(tmp_path / "again", tiny_model, demonstrations())

    def checkpoints() -> Checkpoints:
        return Checkpoints(again.store, "checkpoints", again.spec, every_seconds=0)

    for step in (3, 6):
        again.reporter = Interrupting(step)
        with pytest.raises(Interrupted):
            again.run(checkpoints())
    again.reporter = ConsoleReporter(stream=None)
    result = again.run(checkpoints())
    assert [m.step for m in again.reporter.recorded if m.name == "loss"] == [7, 8]
    assert result.metrics == expected.metrics
    assert result.tokens == expected.tokens
    assert digest_folder(again.folder) == digest_folder(whole.folder)
