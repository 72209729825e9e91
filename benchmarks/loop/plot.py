"""Draw results: `python -m benchmarks.loop.plot results.jsonl docs/learning.svg`, with a row for each preference.

Left: the win rate against the base over the total number of judgments, with its interval. Middle and right: the gain in
true and in proxy score over the square root of KL, a point for each round of each cell. If the proxy rises while the
true score falls, the policy is over-optimised. Grey: the base's best of n under the true score, at equal KL. Needs
matplotlib (`pip install --group docs`).
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.loop import report
from benchmarks.loop.cells import Cell
from benchmarks.loop.prompts import KINDS

LINES = dict(zip(KINDS, ("-", "--"), strict=True))
MARKERS = dict(zip(KINDS, ("o", "x"), strict=True))


def draw_rates(axes: Any, rates: dict[report.Group, Any], preference: str, colours: dict[str, str]) -> None:
    """Draw the win rate over judgments: a line for each method, kind of prompt, noise and number of rounds."""
    curves: dict[tuple[str, str, float, int], list[tuple[int, Any]]] = defaultdict(list)
    for group, rate in rates.items():
        if group.preference == preference:
            key = (group.method, group.kind, group.noise, group.rounds)
            curves[key].append((group.judgments * group.rounds, rate))
    for (method, kind, noise, rounds), points in curves.items():
        points.sort(key=lambda point: point[0])
        judgments = [at for at, _ in points]
        values = [rate.rate for _, rate in points]
        spread = [[rate.rate - rate.low for _, rate in points], [rate.high - rate.rate for _, rate in points]]
        label = f"{method} {kind}" + (f" noise {noise:g}" if noise != 0.1 else "")
        label += f" {rounds} rounds" if rounds > 1 else ""
        style = {"color": colours[method], "linestyle": LINES[kind], "marker": MARKERS[kind]}
        axes.errorbar(judgments, values, spread, label=label, capsize=2, **style)
    axes.axhline(0.5, color="grey", linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)


def draw_gains(true: Any, proxy: Any, results: Sequence[dict[str, Any]], preference: str, colours: Any) -> None:
    """Draw the gain over the base against the square root of KL, for each round of each cell."""
    for result in results:
        cell = Cell.model_validate(result["cell"])
        if "error" in result or cell.preference != preference:
            continue
        for played in result["rounds"]:
            for kind, measured in played["kinds"].items():
                at = max(0.0, measured["kl_k3"]) ** 0.5
                style = {"color": colours[cell.name], "marker": MARKERS[kind]}
                true.scatter(at, measured["true"] - measured["base_true"], **style)
                best = measured["best_of_n_true"] - measured["base_true"]
                true.scatter(at, best, color="grey", marker=MARKERS[kind], s=12)
                proxy.scatter(at, measured["proxy"] - measured["base_proxy"], **style)


def main(source: Path, target: Path) -> None:
    """Draw the results in a file to an SVG file; equal results give identical files."""
    results = report.read(source)
    rates = report.rates(results)
    preferences = list(dict.fromkeys(group.preference for group in rates))
    methods = list(dict.fromkeys(group.method for group in rates))
    colours = {method: f"C{number}" for number, method in enumerate(methods)}
    plt.rcParams |= {"svg.hashsalt": "prefloop", "font.size": 8}
    figure, rows = plt.subplots(len(preferences), 3, figsize=(12, 3.2 * len(preferences)), squeeze=False)
    for preference, (left, middle, right) in zip(preferences, rows, strict=True):
        draw_rates(left, rates, preference, colours)
        draw_gains(middle, right, results, preference, colours)
        titles = ("win rate against the base", "true score gained", "reward model's score gained")
        for axes, title in zip((left, middle, right), titles, strict=True):
            axes.set_title(f"{preference}: {title}")
            axes.set_xlabel("judgments" if axes is left else "sqrt(KL to the base), nats a response")
            axes.grid(alpha=0.3)
        left.legend(frameon=False, fontsize=6)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
