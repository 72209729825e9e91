"""RLOO and GRPO compared with TRL's trainers: on the same answers, whole runs have the same losses."""

from pathlib import Path

import pytest

from benchmarks.rollouts import RolloutJob, ours, theirs
from benchmarks.training import starter_prompts
from tests.trainer.conftest import build_model


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_run_on_our_answers_has_trls_losses(kind: str, tmp_path: Path) -> None:
    build_model(tmp_path / "tiny")
    job = RolloutJob(
        kind=kind,
        model=str(tmp_path / "tiny"),
        lora=True,
        precision="float32",
        learning_rate=1e-3,
        prompts=starter_prompts(),
        batch_size=8,
        epochs=2,
        rollouts=2,
        k=4,
        max_new_tokens=8,
        peer_batch_size=8,
        answers=tmp_path / "answers.json",
    )
    found, wanted = ours(job), theirs(job)
    assert len(found.losses) == len(found.step_seconds) == len(wanted.step_seconds) == 2
    assert max(map(abs, wanted.losses)) > 0.01  # the losses are not trivially 0
    assert found.losses == pytest.approx(wanted.losses, abs=1e-4)
