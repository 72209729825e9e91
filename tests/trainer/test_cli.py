import json
import sys
from pathlib import Path

import pytest

from app.specs import DPOSpec, ModelRef, Optimiser, RewardSpec
from tests.trainer.conftest import separable_pairs, write_rows
from trainer import cli
from trainer.modeling import load_reward_model


def prefloop_trainer(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of `python -m trainer.cli ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["trainer.cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def spec_file(tiny_model: Path, tmp_path: Path) -> Path:
    """A reward run over a store at `tmp_path`, its snapshot given as a location."""
    write_rows(tmp_path / "snapshot.jsonl", separable_pairs(24, 4))
    spec = RewardSpec(
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
