"""Draw the points of `benchmarks.curves`: `python -m benchmarks.plot dpo.json ppo.json docs/curves.svg`.

If a file of best-of-n's points is among the sources, its curve is added to every plot of reward over KL. Needs
matplotlib (`pip install --group docs`).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.curves import UNITS


def root(kl: Sequence[float]) -> list[float]:
    """Return sqrt(KL). Over-optimisation shows as falling reward over sqrt(KL) (Gao et al. 2022)."""
    return [max(0.0, value) ** 0.5 for value in kl]


def main() -> None:
    *sources, target = map(Path, sys.argv[1:])
    found: dict[str, Any] = {source.stem.upper(): json.loads(source.read_text()) for source in sources}
    untrained = [run for drawn in found.values() if drawn["unit"] == UNITS["best_of_n"] for run in drawn["runs"]]
    trained = {name: drawn for name, drawn in found.items() if drawn["unit"] != UNITS["best_of_n"]}
    plt.rcParams |= {"svg.hashsalt": "prefloop", "font.size": 9}  # equal points give identical files
    figure, rows = plt.subplots(len(trained), 3, figsize=(11, 2.8 * len(trained)), squeeze=False)
    for (algorithm, drawn), (left, middle, right) in zip(trained.items(), rows, strict=True):
        for run in drawn["runs"]:
            at, reward, kl = zip(*run["points"], strict=True)
            label = f"seed {run['seed']}"
            left.plot(at, reward, marker="o", label=label)
            middle.plot(at, kl, marker="o", label=label)
            right.plot(root(kl), reward, marker="o", label=label)
        for run in untrained:
            n, reward, kl = zip(*run["points"], strict=True)
            label = f"best of {', '.join(map(str, n))}, seed {run['seed']}"
            right.plot(root(kl), reward, marker=".", color="grey", linestyle="--", label=label)
        middle.axhline(drawn["kl_target"], color="grey", linestyle=":", label="target")
        titles = ("reward", "KL to the start, nats a response", "reward over the square root of KL")
        for axes, name in zip((left, middle, right), titles, strict=True):
            axes.set_title(f"{algorithm}: {name}")
            axes.set_xlabel("sqrt(KL)" if axes is right else drawn["unit"])
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
