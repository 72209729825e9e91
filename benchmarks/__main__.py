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
    command = [sys.executable, "-u", "-m", "benchmarks.sampling", model]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.strip())
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return [line for line in lines if line.startswith("ratio ")]


if __name__ == "__main__":
    lines = [*training.main(), *sampling()]
    print("\n".join(lines))
