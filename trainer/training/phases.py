"""Code for runs with several phases: a common count of steps, and a folder for the phases' results."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.artifacts import ArtifactStore
from trainer.checkpoints import Checkpoints
from trainer.processes import accelerator, the_main_processes
from trainer.reporting import Reporter


class Phase:
    """A reporter that counts a phase's steps on from the steps of earlier phases."""

    def __init__(self, reporter: Reporter, first: int, doing: str) -> None:
        self.reporter, self.first, self.doing = reporter, first, doing
        self.last = first

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        self.last = max(self.last, self.first + step)
        self.reporter.metrics(self.first + step, values, slice)

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.reporter.progress(done, total, f"{self.doing}: {message}")

    def worked(self, tokens: int) -> None:
        self.reporter.worked(tokens)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.reporter.samples(self.first + step, rows)


@contextlib.contextmanager
def workplace(checkpoints: Checkpoints | None) -> Iterator[ArtifactStore]:
    """Give the store for the phases' results: in the folder of the run's checkpoints, or a temporary folder."""
    if checkpoints is not None:
        if accelerator().is_main_process:
            checkpoints.phases.sweep()
        yield checkpoints.phases
        return
    root = the_main_processes(tempfile.mkdtemp)
    try:
        yield ArtifactStore(Path(root))
        accelerator().wait_for_everyone()  # not after an error, which other processes may not have
    finally:
        if accelerator().is_main_process:
            shutil.rmtree(root, ignore_errors=True)
