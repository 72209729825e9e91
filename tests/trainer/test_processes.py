"""Recipes under `accelerate launch`, plain and sharded: two processes give what one gives, to float tolerance."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from app.errors import InvalidInput
from tests.trainer import jobs
from trainer.speed.sharding import check_launch, wants_shards

pytestmark = pytest.mark.long

SHARDED = ("sft", "reward", "dpo", "kto", "sft/full", "reward/full", "dpo/full")
WRITES, GOES_ON = "dpo", "sft/full"  # one process resumes the first job's checkpoint; the second job resumes one's
STEPS_DONE = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    jobs.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """The outputs of every job in one process, and its losses."""
    out = tmp_path_factory.mktemp("one")
    losses = jobs.run_all(folder, out, sorted({*jobs.KINDS, *SHARDED}), checkpoints={GOES_ON})
    assert all(len(values) > 2 for values in losses.values())
    return out, losses


def launch(config: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"docs/accelerate/{config}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def keep_first_steps(folder: Path, name: str) -> None:
    """Remove the later checkpoints of a run, so that it looks as if it had been stopped."""
    written = sorted((folder / "store" / jobs.CHECKPOINTS / jobs.folder_of(name)).glob("*/step-*"))
    assert len(written) > STEPS_DONE
    for later in written[STEPS_DONE:]:
        shutil.rmtree(later)


def assert_same_weights(made: Path, expected: Path) -> None:
    """The files are the same, and weights agree up to float tolerance: sums have another order, amplified by Adam."""
    assert {p.name for p in made.rglob("*")} == {p.name for p in expected.rglob("*")}
    for path in expected.rglob("*.safetensors"):
        weights, expected_weights = load_file(made / path.relative_to(expected)), load_file(path)
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            assert weight.shape == expected_weights[name].shape
            assert (weight - expected_weights[name]).abs().max() < 1e-4, name


def test_two_processes_give_what_one_gives(
    folder: Path, alone: tuple[Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    made, losses = alone
    done = launch("two_cpus.yaml", "tests.trainer.jobs", str(folder), str(tmp_path / "two"), *jobs.KINDS)
    assert done.returncode == 0, done.stderr[-3000:]
    for process in (0, 1):
        two = json.loads((tmp_path / f"two-{process}" / "losses.json").read_text())
        for kind in jobs.KINDS:
            assert two[kind] == pytest.approx(losses[kind], abs=2e-5), kind
        assert json.loads((tmp_path / f"two-{process}" / "share.json").read_text()) == 1
    for kind in jobs.KINDS:
        assert_same_weights(tmp_path / "two-0" / kind, made / kind)
        assert not list((tmp_path / "two-1" / kind).glob("*.safetensors"))  # nobody would read them


def test_two_processes_that_share_out_the_weights_give_what_one_gives(
    folder: Path, alone: tuple[Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    made, losses = alone
    keep_first_steps(folder, GOES_ON)
    names = [f"{name}+" if name in (WRITES, GOES_ON) else name for name in SHARDED]
    done = launch("fsdp_two_cpus.yaml", "tests.trainer.jobs", str(folder), str(tmp_path / "two"), *names)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {name: losses[name][STEPS_DONE if name == GOES_ON else 0 :] for name in SHARDED}
    for process in (0, 1):
        two = json.loads((tmp_path / f"two-{process}" / "losses.json").read_text())
        for name in SHARDED:
            assert two[name] == pytest.approx(expected[name], abs=2e-5), name
        assert json.loads((tmp_path / f"two-{process}" / "share.json").read_text()) == pytest.approx(0.5, abs=0.01)
    for name in SHARDED:
        assert_same_weights(tmp_path / "two-0" / jobs.folder_of(name), made / jobs.folder_of(name))

    # One process goes on from what the shards were gathered into.
    keep_first_steps(folder, WRITES)
    again = jobs.run_all(folder, tmp_path / "again", [WRITES], checkpoints={WRITES})
    assert again[WRITES] == pytest.approx(losses[WRITES][STEPS_DONE:], abs=2e-5)
    assert_same_weights(tmp_path / "again" / WRITES, made / WRITES)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision: bf16"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend: INDUCTOR"),
        ("FSDP_VERSION", "1", "fsdp_version: 1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: true"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "True", "fsdp_cpu_ram_efficient_loading: True"),
    ],
)
def test_what_a_launch_asks_for_in_vain_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_launch()
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInput, match=named):
        check_launch()


@pytest.mark.parametrize("kind", ["ppo", "rloo", "grpo"])
def test_what_samples_between_updates_is_refused_under_fsdp(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InvalidInput, match=f"{kind.upper()} does not run under FSDP"):
        jobs.run(kind, folder, tmp_path / kind)


@pytest.mark.parametrize("config", sorted(Path("docs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_configuration_is_one_that_accelerate_reads_and_recipes_take(
    monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    arguments = ["--config_file", str(config), "-m", "trainer.cli"]
    args, _defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    assert wants_shards() == ("fsdp" in config.stem)
    check_launch()
