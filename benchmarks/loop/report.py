"""Tables and last lines of results."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.simulation.statistics import WinRate, interval
from benchmarks.loop.cells import Cell

TODAY = "dpo_today"
COLUMNS = (
    "method preference kind noise judgments seed win_rate low high true base proxy base best_of_n n kl kl_k3 "
    "tokens base finished base rm_accuracy against_previous low high "
    "adopted seconds sampling reward policy verdict measuring"
).split()


class Group(NamedTuple):
    """Cells that differ only in their seed."""

    method: str
    preference: str
    noise: float
    judgments: int  # per round
    rounds: int
    kind: str

    @property
    def shown_preference(self) -> str:
        """The preference with noise, if it is not 0.1, and kind of prompt: `concise.like`, `concise@0.25.unlike`."""
        return self.preference + (f"@{self.noise:g}" if self.noise != 0.1 else "") + f".{self.kind}"

    @property
    def budget(self) -> str:
        """`400`, or `2x200` for two rounds of 200."""
        return f"{self.rounds}x{self.judgments}" if self.rounds > 1 else str(self.judgments)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the last result of each cell from a file; an incomplete line, left by a kill, is skipped."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[Cell.model_validate(result["cell"]).digest] = result
    return list(found.values())


def append(path: Path, result: dict[str, Any]) -> None:
    """Append a result as one line; if the last line is incomplete, start a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as handle:
        handle.write(("\n" if cut else "") + json.dumps(result) + "\n")


def table(results: Iterable[dict[str, Any]]) -> list[str]:
    """Return a line with `COLUMNS` for each round and kind of prompt, and a line for each cell that failed."""
    rows = [list(COLUMNS)]
    failed = []
    for result in results:
        cell = Cell.model_validate(result["cell"])
        if "error" in result:
            failed.append(f"failed {cell.name} {cell.preference} {cell.judgments} seed {cell.seed}: {result['error']}")
            continue
        for played in result["rounds"]:
            for kind, measured in played["kinds"].items():
                rows.append(_row(cell, played, kind, measured))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) for row in rows] + failed


def _row(cell: Cell, played: dict[str, Any], kind: str, measured: dict[str, Any]) -> list[str]:
    rate = interval([measured["win_shares"]])
    before = measured.get("shares_against_previous")
    against = interval([before]) if before else None
    accuracy = played["reward"].get("eval_accuracy")
    spent = played["seconds"]
    seconds = {part: spent.get(part, 0.0) for part in ("label_samples", "reward", "policy", "verdict")}
    seconds["measuring"] = sum(spent.values()) - sum(seconds.values())
    numbers = [
        rate.rate,
        rate.low,
        rate.high,
        measured["true"],
        measured["base_true"],
        measured["proxy"],
        measured["base_proxy"],
        measured["best_of_n_true"],
        measured["best_of_n"],
        measured["kl"],
        measured["kl_k3"],
        measured["tokens"],
        measured["base_tokens"],
        measured["finished"],
        measured["base_finished"],
        accuracy,
        *(against[:3] if against else (None,) * 3),
    ]
    done = f"{played['round']}x{cell.judgments}" if cell.rounds > 1 else str(cell.judgments)
    return [
        cell.name,
        cell.preference,
        kind,
        f"{cell.noise:g}",
        done,
        str(cell.seed),
        *("-" if number is None else f"{number:.3f}" for number in numbers),
        "yes" if played["adopted"] else "no",
        *(f"{number:.0f}" for number in (sum(seconds.values()), *seconds.values())),
    ]


def rates(results: Iterable[dict[str, Any]]) -> dict[Group, WinRate]:
    """Return the win rate against the base after the last round, with its interval over prompts and seeds.

    If cells of a group have different numbers of prompts, only those with the most prompts count.
    """
    shares: dict[Group, list[list[float]]] = defaultdict(list)
    for result in results:
        if "error" in result:
            continue
        cell = Cell.model_validate(result["cell"])
        for kind, measured in result["rounds"][-1]["kinds"].items():
            group = Group(cell.name, cell.preference, cell.noise, cell.judgments, cell.rounds, kind)
            shares[group].append(measured["win_shares"])
    found = {}
    for group, runs in shares.items():
        most = max(map(len, runs))
        found[group] = interval([run for run in runs if len(run) == most])
    return found


class Saved(NamedTuple):
    """How many times fewer judgments a method needs than the baseline.

    Attributes:
        bound: `>=` if the baseline never reaches the win rate within the budgets that were run, so that `times` is a
            lower bound; `<=` if it reaches it already with the smallest budget.
    """

    times: float
    bound: str


def judgments_saved(measured: dict[Group, WinRate], today: str = TODAY) -> dict[str, Saved]:
    """Return for each method the mean of (judgments that the baseline `today` needs) / (judgments of the method).

    The mean is geometric, over the method's groups. The baseline's need is the smallest budget with the same win rate,
    interpolated linearly in the logarithm of the budget. Groups are compared only if they differ in nothing but method
    and budget.
    """
    curves: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for group, rate in measured.items():
        if group.method == today:
            curves[group.preference, group.noise, group.rounds, group.kind].append(
                (math.log(group.judgments), rate.rate)
            )
    logs: dict[str, list[float]] = defaultdict(list)
    bounds: dict[str, set[str]] = defaultdict(set)
    for group, rate in measured.items():
        curve = curves.get((group.preference, group.noise, group.rounds, group.kind))
        if group.method == today or not curve:
            continue
        needed, bound = budget_for(rate.rate, sorted(curve))
        logs[group.method].append(needed - math.log(group.judgments))
        bounds[group.method].add(bound)
    return {method: Saved(math.exp(float(np.mean(values))), _joined(bounds[method])) for method, values in logs.items()}


def _joined(bounds: set[str]) -> str:
    limits = bounds - {""}
    return limits.pop() if len(limits) == 1 else "~" if limits else ""  # ~: bounds of both kinds


def budget_for(rate: float, curve: Sequence[tuple[float, float]]) -> tuple[float, str]:
    """Return the smallest log-budget with the interpolated rate `rate`, and the kind of bound if the curve misses it.

    Args:
        curve: (log of the budget, win rate), ascending in the budget. It is made monotonic, because dips are chance.
    """
    logs = [log for log, _ in curve]
    rising = np.maximum.accumulate([value for _, value in curve])
    if rate > rising[-1]:
        return logs[-1], ">="
    if rate <= rising[0]:
        return logs[0], "" if rate == rising[0] else "<="
    above = int(np.argmax(rising >= rate))
    share = (rate - rising[above - 1]) / (rising[above] - rising[above - 1])
    return float(logs[above - 1] + share * (logs[above] - logs[above - 1])), ""


def last_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines `win_rate METHOD PREFERENCE.KIND BUDGET x low high` and `judgments_saved METHOD x [bound]`."""
    measured = rates(results)
    lines = [
        f"win_rate {group.method} {group.shown_preference} {group.budget} " + " ".join(f"{x:.3f}" for x in rate[:3])
        for group, rate in measured.items()
    ]
    saved = judgments_saved(measured)
    return lines + [f"judgments_saved {name} {each.times:.2f} {each.bound}".rstrip() for name, each in saved.items()]
