import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.artifacts import ArtifactStore, digest_folder
from app.errors import ModelUnavailable, StorageFull
from app.rows import DemonstrationRow, PromptRow
from app.specs import DPOSpec, Generation, ModelRef, Optimiser, RewardSpec, SampleSpec, SFTSpec
from tests.trainer.conftest import separable_pairs, user, write_rows
from trainer import cli
from trainer.batching import data
from trainer.checkpoints import Checkpoints
from trainer.recipes import reward, sample
from trainer.recipes.sample import Completion
from trainer.reporting import ConsoleReporter
from trainer.reward.model import load_reward_model


def prefloop_trainer(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Return the exit status of `python -m trainer.cli ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["trainer.cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def spec_file(tiny_model: Path, tmp_path: Path) -> Path:
    """The spec of a reward run in a store at `tmp_path`, with a location for its snapshot."""
    write_rows(tmp_path / "snapshot.jsonl", separable_pairs(24, 4))
    spec = RewardSpec(
        trunk="trained",
        backbone=ModelRef(base=str(tiny_model)),
        snapshot="snapshot.jsonl",
        optimiser=Optimiser(learning_rate=1e-3),
    )
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    return path


def test_a_reward_run_leaves_model_spec_and_metrics(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prefloop_trainer(monkeypatch, "reward", spec_file, out, "--store", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["train_pairs"] == 20
    load_reward_model(out)
    assert RewardSpec.model_validate_json((out / "spec.json").read_text()).snapshot == "snapshot.jsonl"
    names = {name for line in (out / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {"loss", "eval_accuracy"} <= names

    assert prefloop_trainer(monkeypatch, "reward", spec_file, out, "--store", tmp_path) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_run_that_fails_leaves_nothing_and_two_lines(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "snapshot.jsonl", separable_pairs(9, 4))
    assert prefloop_trainer(monkeypatch, "reward", spec_file, tmp_path / "out", "--store", tmp_path) == 1
    message, advice = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "there are 5" in message
    assert advice.startswith("Collect more judgments")
    assert not (tmp_path / "out").exists()


def test_a_machine_without_memory_is_told_in_words(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(reward, "load_tokenizer", no_room)
    assert prefloop_trainer(monkeypatch, "reward", spec_file, tmp_path / "out", "--store", tmp_path) == 1
    message, advice = capsys.readouterr().err.strip().splitlines()[-2:]
    assert message.endswith("The machine ran out of memory.")
    assert "microbatch_tokens" in advice


def test_specs_that_do_not_fit_are_named(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefloop_trainer(monkeypatch, "dpo", spec_file, tmp_path / "out") == 1
    assert "is the spec of a reward run, not of a dpo run" in capsys.readouterr().err
    ref = ModelRef(base="models/none")
    wrong = DPOSpec(policy=ref, reference=ref, snapshot="s").model_dump() | {"beta": -1}
    spec_file.write_text(json.dumps(wrong))
    assert prefloop_trainer(monkeypatch, "dpo", spec_file, tmp_path / "out") == 1
    assert "dpo.beta: Input should be greater than 0" in capsys.readouterr().err


def test_fetching_prints_the_location(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefloop_trainer(monkeypatch, "fetch-model", tiny_model, "--store", tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tiny_model)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def demonstrations(tiny_model: Path, tmp_path: Path) -> Path:
    """The spec of a fine-tuning run of eight steps in a store at `tmp_path`."""
    rows = [
        DemonstrationRow(
            id=i, messages=user(f"Say {i}"), response=f"{i} apples" * (i % 3 + 1), split="heldout" if i < 4 else "train"
        )
        for i in range(36)
    ]
    write_rows(tmp_path / "demonstrations.jsonl", rows)
    spec = SFTSpec(
        policy=ModelRef(base=str(tiny_model)),
        demonstrations="demonstrations.jsonl",
        optimiser=Optimiser(learning_rate=1e-3, epochs=2, microbatch_size=3),
    )
    path = tmp_path / "sft.json"
    path.write_text(spec.model_dump_json())
    return path


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def full_disk_at(full: int) -> Callable[..., None]:
    """Return a `Checkpoints.save` whose disk is full at one step."""
    save = Checkpoints.save

    def saved(self: Checkpoints, step: int, *rest: Any) -> None:
        if step == full:
            raise StorageFull("There was no room left on the disk.")
        save(self, step, *rest)

    return saved


def test_a_run_that_failed_goes_on_when_it_is_started_again(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the fifth checkpoint. With free space, the same command ends like an uninterrupted run."""
    arguments = ("--store", tmp_path, "--checkpoint-seconds", 0)
    assert prefloop_trainer(monkeypatch, "sft", demonstrations, tmp_path / "whole", *arguments) == 0
    assert not (tmp_path / "whole.checkpoints").exists()

    out, kept = tmp_path / "out", tmp_path / "kept"
    arguments = (*arguments, "--checkpoints", kept, "--keep", 3)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", full_disk_at(5))
        assert prefloop_trainer(monkeypatch, "sft", demonstrations, out, *arguments) == 1
    assert not out.exists()
    assert sorted(path.name for path in kept.glob("*/step-*")) == ["step-00000002", "step-00000003", "step-00000004"]

    assert prefloop_trainer(monkeypatch, "sft", demonstrations, out, *arguments) == 0
    assert not kept.exists()
    assert metrics_of(out) == metrics_of(tmp_path / "whole")
    assert digest_folder(out) == digest_folder(tmp_path / "whole")


def test_a_run_whose_rows_or_model_were_replaced_begins_anew(
    demonstrations: Path, tiny_model: Path, other_tiny_model: Path, tmp_path: Path
) -> None:
    """Checkpoints of another spec are in another folder; test_resume.py tests that they are not used."""
    policy = tmp_path / "policy"
    spec = cli.read_spec(demonstrations, "sft").model_copy(update={"policy": ModelRef(base="policy")})

    def begun() -> Path:
        return cli.checkpoints_of(
            spec, ArtifactStore(tmp_path), tmp_path / "out", cli.CheckpointOptions(None, 0, 2)
        ).folder

    shutil.copytree(tiny_model, policy)
    first = begun()
    assert begun() == first
    rows = tmp_path / "demonstrations.jsonl"
    rows.write_text(rows.read_text().replace("9 apples", "9 pears"))
    before = begun()
    assert before != first
    shutil.rmtree(policy)
    shutil.copytree(other_tiny_model, policy)
    assert begun() != before
    os.truncate(policy / "model.safetensors", 4)
    with pytest.raises(ModelUnavailable, match=r"model policy cannot be loaded: .* is damaged"):
        begun()
    spec = spec.model_copy(update={"policy": ModelRef(base="someone/some-model")})
    begun()  # a name on the hub


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [True, False])
def test_only_a_run_that_ended_well_waits_for_the_other_processes(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Leaving the process group waits for the others. After an error, the others may be waiting for this process."""
    left: list[str] = []
    group = SimpleNamespace(is_initialized=lambda: True, destroy_process_group=lambda: left.append("left"))
    monkeypatch.setattr(cli, "distributed", group)
    monkeypatch.setattr(reward, "train", lambda *_, **__: data.EncodedPairs([1 // (not fails)], [], ()))
    monkeypatch.setattr(sys, "argv", ["trainer.cli", "reward", str(spec_file), str(tmp_path / "out")])
    with pytest.raises(ZeroDivisionError if fails else SystemExit):
        cli.main()
    assert left == ([] if fails else ["left"])


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    "accelerate": ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"),
}


def launched(launcher: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `trainer.cli ARGUMENTS` in two processes."""
    return subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "trainer.cli", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_write_one_output_with_the_losses_of_one(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefloop_trainer(monkeypatch, "sft", demonstrations, tmp_path / "one", "--store", tmp_path) == 0
    done = launched("torchrun", "sft", demonstrations, tmp_path / "two", "--store", tmp_path, "--checkpoint-seconds", 0)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train_rows"] == 32  # one result, not two
    assert done.stderr.count("step 7 ") == 1
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [entry.keys() for entry in one] == [entry.keys() for entry in two]
    for alone, shared in zip(one, two, strict=True):
        for name in alone.keys() - {"slice"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), (name, alone["step"])
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    assert not list(tmp_path.glob("*.checkpoints"))


def test_two_processes_sample_what_one_samples(tiny_ref: ModelRef, tmp_path: Path) -> None:
    rows = [PromptRow(id=i, messages=user("z" * (i * 5 % 17))) for i in range(5)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    generation = Generation(samples_per_prompt=2, max_new_tokens=20, batch_size=4)
    spec = SampleSpec(models=(tiny_ref,), prompts="prompts.jsonl", generation=generation, seed=5)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    one: list[Completion] = []
    sample.sample(spec, ArtifactStore(tmp_path), ConsoleReporter(stream=None), one.extend)
    done = launched("accelerate", "sample", tmp_path / "spec.json", tmp_path / "two", "--store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 10
    two = [Completion(**json.loads(line)) for line in (tmp_path / "two" / "completions.jsonl").open()]
    assert sorted(two, key=lambda c: (c.prompt_id, c.sample_index)) == sorted(
        one, key=lambda c: (c.prompt_id, c.sample_index)
    )


def test_an_error_that_two_processes_meet_is_told_once(demonstrations: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "demonstrations.jsonl", [])
    done = launched("torchrun", "sft", demonstrations, tmp_path / "two", "--store", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("needs at least 20 training demonstrations; there are 0") == 1
    assert not (tmp_path / "two").exists()
