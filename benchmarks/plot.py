"""Draws the points that `benchmarks.curves` wrote: `python -m benchmarks.plot dpo.json ppo.json docs/curves.svg`.

Needs matplotlib (`pip install --group docs`).
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main() -> None:
    *sources, target = map(Path, sys.argv[1:])
    plt.rcParams |= {"svg.hashsalt": "prefloop", "font.size": 9}  # equal points give an equal file
    figure, rows = plt.subplots(len(sources), 3, figsize=(11, 2.8 * len(sources)), squeeze=False)
    for source, (left, middle, right) in zip(sources, rows, strict=True):
        found = json.loads(source.read_text())
        for run in found["runs"]:
            at, reward, kl = zip(*run["points"], strict=True)
            label = f"seed {run['seed']}"
            left.plot(at, reward, marker="o", label=label)
            middle.plot(at, kl, marker="o", label=label)
            # Gao et al. 2022: over-optimisation shows where reward turns down over the square root of KL.
            right.plot([max(0.0, value) ** 0.5 for value in kl], reward, marker="o", label=label)
        middle.axhline(found["kl_target"], color="grey", linestyle=":", label="target")
        titles = ("reward", "KL to the start, nats a response", "reward over the square root of KL")
        for axes, name in zip((left, middle, right), titles, strict=True):
            axes.set_title(f"{source.stem.upper()}: {name}")
            axes.set_xlabel("sqrt(KL)" if axes is right else found["unit"])
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
