"""Compare the speed of labeling with Label Studio: `python -m benchmarks.peer`, or `make benchmark-peer`.

The same HTTP client simulates the same number of labelers on the same pairs: they get a card, answer it, and repeat
this without a pause. Each side has two web processes and its own database on one scratch PostgreSQL server. The sides
run in turns, so that other load on the machine affects both equally. The result is each service's maximum throughput.

The last lines are `statements card A answer B ahead C` (for Prefloop) and `ratio label_path_peer X` (judgments per
second, ours divided by theirs).
"""

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from app.postgres import database
from app.settings import Settings
from benchmarks import data
from benchmarks.peer.client import Played, percentile, play
from benchmarks.peer.label_studio import label_studio
from benchmarks.peer.ours import prefloop
from benchmarks.peer.processes import processor_seconds
from benchmarks.peer.sides import Plan, Side

SIDES: dict[str, Callable[[Plan], AbstractContextManager[Side]]] = {"ours": prefloop, "theirs": label_studio}
COLUMNS = (
    "judgments/s",
    "card p50",
    "card p95",
    "answer p50",
    "answer p95",
    "errors",
    "over-assigned",
    "lost",
    "service ms",
    "client",
)


def row(name: str, played: Played, over: int, lost: int) -> str:
    """Return a line of the table. Times are in milliseconds.

    `service ms` is the processor time of the service and PostgreSQL per judgment. `client` is the client's share of one
    processor.
    """
    times = [percentile(values, percent) for values in (played.card, played.answer) for percent in (50, 95)]
    cells = [f"{played.rate:.1f}", *(f"{ms:.0f}" for ms in times), f"{played.errors.total()}", f"{over}", f"{lost}"]
    return _line(name, [*cells, f"{played.service_ms:.0f}", f"{played.client_seconds / played.seconds:.0%}"])


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:14}" + "".join(f"{cell:>{len(column) + 2}}" for cell, column in zip(cells, COLUMNS, strict=True))


def measure(side: Side, played: Played, plan: Plan, seconds: float, warmup: float) -> None:
    """Let all labelers judge on this side for one turn."""
    postmaster = int((plan.folder / "postgres" / "postmaster.pid").read_text().split()[0])
    play(side.labelers, played, seconds, warmup, lambda: processor_seconds([*side.pids, postmaster]))


def report(side: Side, played: Played, overlap: int) -> None:
    print(row(side.name, played, side.over_assigned(overlap), side.lost(played.acknowledged)), flush=True)
    for message, count in played.errors.most_common(5):
        print(f"  {count} times: {message}")
    if played.dry:
        print(f"  {played.dry} times a labeler got no card: increase --pairs")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "file", type=Path, nargs="?", help="pairs to judge, in any JSONL import format; default: generated pairs"
    )
    parser.add_argument("--labelers", type=int, default=20)
    parser.add_argument("--overlap", type=int, default=3, help="judgments per pair")
    parser.add_argument("--pairs", type=int, default=2000, help="number of pairs to judge, from the start of a file")
    parser.add_argument("--seconds", type=float, default=30, help="measured seconds of each side")
    parser.add_argument("--turns", type=int, default=3, help="turns into which each side's time is divided")
    parser.add_argument("--warmup", type=float, default=3, help="seconds before each turn that are not measured")
    parser.add_argument("--processes", type=int, default=2, help="web processes of each side")
    parser.add_argument("--only", choices=tuple(SIDES), help="run only one side; there is no ratio then")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed(argv)
    # SIGTERM stops all processes in the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    pairs = data.read(options.file)[: options.pairs] if options.file else data.made(options.pairs)
    keys = [options.only] if options.only else list(SIDES)
    played = {key: Played() for key in keys}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pf-")))
        url = stack.enter_context(database(Settings(home=folder, database_url=None, _env_file=None)))
        plan = Plan(pairs, options.labelers, options.overlap, options.processes, url, folder)
        print(f"{len(pairs):,} pairs, overlap {plan.overlap}, {plan.labelers} labelers, {plan.processes} web processes")
        print(f"Preparing {' and '.join(keys)} (a few minutes)", flush=True)
        sides = {key: stack.enter_context(SIDES[key](plan)) for key in keys}
        for number in range(options.turns):
            for key in keys if number % 2 == 0 else reversed(keys):
                measure(sides[key], played[key], plan, options.seconds / options.turns, options.warmup)
        print(_line("", COLUMNS))
        for key in keys:
            report(sides[key], played[key], plan.overlap)
    lines = [
        "statements " + " ".join(f"{step} {count}" for step, count in side.statements.items())
        for side in sides.values()
        if side.statements
    ]
    if len(keys) == len(SIDES):
        lines.append(f"ratio label_path_peer {played['ours'].rate / played['theirs'].rate:.2f}")
    print("", *lines, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
