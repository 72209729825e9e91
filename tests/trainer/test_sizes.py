"""Automatic batch sizes, against arithmetic. Runs report the chosen sizes, and these do not change the results."""

from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.models.sizes
from app.artifacts import ArtifactStore
from app.specs import Generation, ModelRef, Optimiser, SampleSpec
from tests.trainer import jobs
from trainer.models.loading import load_causal_lm, load_config
from trainer.models.policy import trunk_of
from trainer.models.sizes import Machine, Shape, Sizes, choose, forward_tokens, shape_of
from trainer.recipes import sample
from trainer.reporting import ConsoleReporter

GIB = 2**30
DEFAULT = Shape(hidden=576, layers=30, vocabulary=49152, cached=2 * 3 * 64, itemsize=4)  # SmolLM2-135M
# 12 * 10 * 1000^2 numbers in 480 MB; 20 * 1000 * 4 bytes per token and layer, 10 layers: 800 kB per token;
# 512 * 10 * 200 * 4 bytes per sequence: 4.096 MB.
PLAIN = Shape(hidden=1000, layers=10, vocabulary=0, cached=200, itemsize=4)


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("memory", [8 * GIB, 64 * GIB])
@pytest.mark.parametrize("full_weights", [False, True])
def test_two_cores_get_what_was_measured_on_two_cores(cores: int, memory: int, full_weights: bool) -> None:
    assert choose(Machine("cpu", memory, cores), DEFAULT, full_weights) == Sizes(1024, 2048, 32, 64)


def test_more_cores_and_accelerators_get_more() -> None:
    assert choose(Machine("cpu", 64 * GIB, 8), DEFAULT) == Sizes(4096, 8192, 128, 256)
    assert choose(Machine("cpu", 512 * GIB, 96), DEFAULT) == Sizes(8192, 16384, 256, 512)
    assert choose(Machine("cuda", 140 * GIB, 16), DEFAULT) == Sizes(16384, 32768, 256, 512)


@pytest.mark.parametrize(
    ("memory", "full_weights", "expected"),
    [
        # 2 GB minus 480 MB: half of this, 760 MB, holds 950 tokens for backward and 185 sequences. A sixteenth, 95 MB,
        # holds 1187 tokens of one layer.
        (2_000_000_000, False, Sizes(512, 1024, 128, 128)),
        # 20 bytes for each of 120 million trained weights: 2.4 GB leave 600 MB of 3 GB; half of this holds 375 tokens.
        # With frozen weights, 157.5 MB hold 1968 tokens, and 1.26 GB hold 307 sequences.
        (3_000_000_000, True, Sizes(256, 1024, 256, 256)),
        (100_000_000, False, Sizes(256, 512, 8, 8)),  # nothing fits: the minimum, and the run will fail
    ],
)
def test_what_does_not_fit_is_halved(memory: int, full_weights: bool, expected: Sizes) -> None:
    assert choose(Machine("cuda", memory, 16), PLAIN, full_weights) == expected


def test_named_settings_stay_and_rows_a_step_are_never_touched() -> None:
    chosen = Sizes(4096, 8192, 128, 256)
    settings = Optimiser(learning_rate=1e-3, batch_size=5)
    assert chosen.fill(settings) == settings.model_copy(update={"microbatch_tokens": 4096})
    named = Optimiser(learning_rate=1e-3, microbatch_tokens=300)
    assert chosen.fill(named) == named


def test_the_shape_of_a_model_is_read_from_its_configuration(tiny_ref: ModelRef) -> None:
    shape = shape_of(load_config(tiny_ref.base), torch.bfloat16)
    assert shape == Shape(96, 2, 260, 2 * 2 * 24, 2)  # two key heads of 96 / 4
    weights = sum(parameter.numel() for parameter in load_causal_lm(tiny_ref).parameters())
    assert shape.weights == pytest.approx(weights, rel=0.35)


# ---- runs ------------------------------------------------------------------------------------------------------------

LITTLE, PLENTY = Machine("cpu", 1, 1), Machine("cpu", 64 * GIB, 16)
LEAST, MOST = Sizes(256, 512, 8, 8), Sizes(8192, 16384, 256, 512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    jobs.prepare(folder)
    return folder


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo", "rloo"])
def test_a_run_says_what_was_chosen_and_learns_the_same(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = jobs.spec_of(kind, folder)
    # Rows would limit a microbatch before tokens do.
    settings = {"microbatch_size": 64, "precision": "float32"}
    spec = spec.model_copy(update={"optimiser": spec.optimiser.model_copy(update=settings)})  # type: ignore[union-attr]
    results: list[Any] = []
    reporters: list[ConsoleReporter] = []
    for machine, sizes in ((LITTLE, LEAST), (PLENTY, MOST)):
        monkeypatch.setattr(trainer.models.sizes, "this_machine", lambda machine=machine: machine)
        reporters.append(ConsoleReporter(stream=None))
        out = tmp_path / machine.device / str(machine.cores)
        out.mkdir(parents=True)
        results.append(jobs.RECIPES[spec.kind].train(spec, ArtifactStore(tmp_path / "store"), reporters[-1], out))
        expected = {"microbatch_tokens": sizes.microbatch_tokens, "forward_tokens": sizes.forward_tokens}
        if kind not in ("sft", "reward", "dpo"):
            expected["rollout_batch_size"] = sizes.rollout_batch_size
        assert results[-1].sizes == expected
        assert 50 * 2**20 < results[-1].peak_memory < 64 * GIB  # torch alone needs more than the minimum
        assert results[-1].seconds > 0
    assert results[0].tokens == results[1].tokens > 0
    found, wanted = (jobs.losses_of(kind, reporter) for reporter in reporters)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_samples_do_not_depend_on_how_many_are_generated_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SampleSpec(
        models=(ModelRef(base=str(folder / "tiny")),),
        prompts=str(folder / "prompts.jsonl"),
        generation=Generation(samples_per_prompt=2, max_new_tokens=8),
    )
    texts: list[list[str]] = []
    for machine, sizes in ((LITTLE, LEAST), (PLENTY, MOST)):
        monkeypatch.setattr(trainer.models.sizes, "this_machine", lambda machine=machine: machine)
        said: list[sample.Completion] = []
        result = sample.sample(spec, ArtifactStore(tmp_path), ConsoleReporter(stream=None), said.extend)
        texts.append([completion.text for completion in sorted(said)])
        assert result.sizes == {"batch_size": sizes.batch_size}
        assert result.peak_memory > 50 * 2**20
    assert texts[0] == texts[1]


def test_what_is_forwarded_without_gradients_goes_by_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(ModelRef(base=str(folder / "tiny")))
    for machine, sizes in ((LITTLE, LEAST), (PLENTY, MOST)):
        monkeypatch.setattr(trainer.models.sizes, "this_machine", lambda machine=machine: machine)
        assert forward_tokens(trunk_of(model)) == sizes.forward_tokens
