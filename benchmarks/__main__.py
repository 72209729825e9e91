"""All comparisons in one run: `python -m benchmarks [FILE ...]`. The last lines are `ratio NAME X`, one each."""

import subprocess
import sys
from pathlib import Path

from app.artifacts import ArtifactStore
from benchmarks import training
from trainer.default_model import DEFAULT_MODEL, fetch_model


def sampling() -> list[str]:
    """The sampling benchmark in a process of its own; the line with its ratio."""
    store = ArtifactStore(Path(".benchmark").absolute())
    model = str(store.resolve(fetch_model(store, DEFAULT_MODEL, say=lambda line: None)))
    command = [sys.executable, "-m", "benchmarks.sampling", model]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return [line for line in done.stdout.splitlines() if line.startswith("ratio ")]


if __name__ == "__main__":
    lines = [*training.main(), *sampling()]
    print("\n".join(lines))
