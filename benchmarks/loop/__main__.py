"""`python -m benchmarks.loop`: play cells and report them. Without arguments, it plays a subset in under 20 minutes.

The store keeps every output, so an interrupted command continues when you repeat it, and cells share their common
outputs. The last lines are `win_rate METHOD PREFERENCE.KIND BUDGET x low high` and `judgments_saved METHOD x`. The
latter ends with `>=` if the baseline never reached the same win rate.
"""

import argparse
import sys
import time
from pathlib import Path

from app.artifacts import ArtifactStore
from app.errors import PrefloopError
from app.simulation.preference import PREFERENCES
from benchmarks.loop import report
from benchmarks.loop.apart import played, quiet, say
from benchmarks.loop.cells import Cell, grid
from benchmarks.loop.methods import METHODS
from trainer.models.default_model import fetch_model

FROZEN = tuple(name for name, method in METHODS.items() if method.frozen)
CHOSEN = "on_policy_dpo"  # the default method, which the whole grid plays on every preference
STORE = Path.home() / ".prefloop-benchmark"


def parser() -> argparse.ArgumentParser:
    """Return the parser of arguments; cells are all combinations of the lists."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=["dpo_today", "dpo", CHOSEN], metavar="METHOD")
    add("--preferences", nargs="+", default=["concise"], metavar="PREFERENCE", help=", ".join(PREFERENCES))
    add("--noise", nargs="+", type=float, default=[0.1])
    add("--budgets", nargs="+", type=int, default=[200], help="judgments per round")
    add("--rounds", nargs="+", type=int, default=[1])
    add("--seeds", nargs="+", type=int, default=[0])
    add(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="[METHOD:]PART.NAME=VALUE",
        help="a setting of one method, or of all except dpo_today; parts: labels, reward, policy; repeatable",
    )
    add("--final", action="store_true", help="allow --set on final-only preferences, because the settings are chosen")
    add("--whole", action="store_true", help="play the whole grid, which takes hours; ignores other choices of cells")
    add("--prompts", type=int, default=20, help="held-out prompts of each kind (80 with --whole)")
    add("--base-samples", type=int, default=8, help="the base's answers per held-out prompt (16 with --whole)")
    add("--max-new-tokens", type=int, default=64, help="maximum tokens of an answer")
    add("--store", type=Path, default=STORE, help="folder of the models and all outputs")
    add("--model", default=None, help="folder or hub name of the base; default: the service's default model")
    add(
        "--output", type=Path, default=None, help="results, one JSON line per cell; default: results.jsonl in the store"
    )
    add("--in-process", action="store_true", help="run everything in this process, for a debugger")
    add("--report", action="store_true", help="only report all cells in the output")
    return parser


def whole() -> list[Cell]:
    """Return all cells of docs/learning.md: every method on one tuning preference, then the chosen method on all."""
    common = {"frozen": FROZEN}
    return [
        *grid([*METHODS], ["concise"], [0.1], [200, 400], [1], [0], **common),
        *grid(["dpo_today"], [*PREFERENCES], [0.1], [100, 200, 400, 800], [1], [0, 1, 2], **common),
        *grid([CHOSEN], [*PREFERENCES], [0.1], [100, 200, 400], [1], [0, 1, 2], **common),
        *grid(["dpo_today", CHOSEN], [*PREFERENCES], [0.25], [200], [2], [0, 1, 2], **common),
        *grid(["dpo_today", CHOSEN], ["concise"], [0.1], [100], [4], [0], **common),
    ]


def chosen_cells(args: argparse.Namespace) -> list[Cell]:
    """Return the requested cells, each once."""
    if args.whole:
        cells = whole()
    else:
        cells = grid(
            args.methods,
            args.preferences,
            args.noise,
            args.budgets,
            args.rounds,
            args.seeds,
            args.settings,
            frozen=FROZEN,
            final=args.final,
            prompts=args.prompts,
            base_samples=args.base_samples,
            max_new_tokens=args.max_new_tokens,
        )
    return list({cell.digest: cell for cell in cells}.values())


def main(arguments: list[str] | None = None) -> list[str]:
    """Play the cells and report; return the last lines."""
    args = parser().parse_args(arguments)
    output = args.output or args.store / "results.jsonl"
    if args.report:
        results = report.read(output)
    else:
        cells = chosen_cells(args)
        base = fetch_model(
            ArtifactStore(args.store.absolute()), **({"name": args.model} if args.model else {}), say=say
        )
        stale: set[str] = set()
        results = []
        for number, cell in enumerate(cells, 1):
            started = time.monotonic()
            say(f"[{number}/{len(cells)}] {cell.name} {cell.preference} noise {cell.noise:g} "
                f"{cell.rounds}x{cell.judgments} seed {cell.seed}")  # fmt: skip
            result, other_code = played(cell, args.store, base, apart=not args.in_process)
            results.append(result)
            stale |= other_code
            report.append(output, results[-1])
            say(f"    {time.monotonic() - started:.0f} s")
        if stale:
            say(f"{len(stale)} outputs were made by another version of the code. Use another --store to repeat them.")
    print("\n".join(report.table(results)))
    lines = report.last_lines(results)
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    quiet()
    try:
        main()
    except PrefloopError as error:
        print(f"{error.title}: {error.message} {error.advice or ''}", file=sys.stderr)
        sys.exit(1)
