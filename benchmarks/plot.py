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
    figure, rows = plt.subplots(len(sources), 2, figsize=(8, 2.8 * len(sources)), squeeze=False)
    for source, (left, right) in zip(sources, rows, strict=True):
        found = json.loads(source.read_text())
        for run in found["runs"]:
            at, reward, kl = zip(*run["points"], strict=True)
            label = f"seed {run['seed']}"
            left.plot(at, reward, marker="o", label=label)
            right.plot(at, kl, marker="o", label=label)
        right.axhline(found["kl_target"], color="grey", linestyle=":", label="target")
        for axes, name in ((left, "reward"), (right, "KL to the start, nats a response")):
            axes.set_title(f"{source.stem.upper()}: {name}")
            axes.set_xlabel(found["unit"])
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
