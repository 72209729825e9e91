"""The recipes under `accelerate launch`: two processes give the losses that one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import jobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    jobs.prepare(folder)
    return folder


@pytest.mark.parametrize("kind", jobs.KINDS)
def test_two_processes_give_the_losses_of_one(kind: str, folder: Path, tmp_path: Path) -> None:
    alone = jobs.losses_of(kind, jobs.run(kind, folder, tmp_path / "one"))
    assert len(alone) > 2
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "docs/accelerate/two_cpus.yaml"]
    command += ["-m", "tests.trainer.jobs", kind, str(folder), str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for process in (0, 1):
        losses = json.loads((tmp_path / f"two-{process}.json").read_text())
        assert losses == pytest.approx(alone, abs=2e-5)
