"""The speed of the label path beside Label Studio's: `python -m benchmarks.peer`, or `make benchmark-peer`.

The same client plays the same number of labelers on the same pairs, by HTTP: a card, an answer, and again without a
pause. Each side has two web processes and a database of its own on one scratch PostgreSQL server, and the machine to
itself: one side is served at a time. What is measured is what a service takes at most, not a labeler's day.

The last lines are `statements card A answer B ahead C` (of Prefloop) and `ratio label_path_peer X` (judgments a second,
ours over theirs).
"""

import argparse
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
    "client",
)


def row(name: str, played: Played, over: int, lost: int) -> str:
    """A line of the table. Times in milliseconds; `client` is the client's own share of one processor."""
    times = [percentile(values, percent) for values in (played.card, played.answer) for percent in (50, 95)]
    cells = [f"{played.rate:.1f}", *(f"{ms:.0f}" for ms in times), f"{played.errors.total()}", f"{over}", f"{lost}"]
    return _line(name, [*cells, f"{played.client_share:.0%}"])


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:14}" + "".join(f"{cell:>{len(column) + 2}}" for cell, column in zip(cells, COLUMNS, strict=True))


def measure(side: Side, plan: Plan, seconds: float, warmup: float) -> float:
    """Let everybody judge on this side and print what came of it; returns judgments a second."""
    played = play(side.labelers, seconds, warmup)
    print(_line("", COLUMNS))
    print(row(side.name, played, side.over_assigned(plan.overlap), side.lost(played.acknowledged)), flush=True)
    for message, count in played.errors.most_common(5):
        print(f"  {count} times: {message}")
    if played.dry:
        print(f"  {played.dry} times somebody found no card: give more --pairs")
    return played.rate


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "file", type=Path, nargs="?", help="pairs to judge, any JSONL that can be imported; else made ones"
    )
    parser.add_argument("--labelers", type=int, default=20)
    parser.add_argument("--overlap", type=int, default=3, help="judgments wanted of each pair")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs to judge; of a file, the first so many")
    parser.add_argument("--seconds", type=float, default=30, help="measured time of each side")
    parser.add_argument("--warmup", type=float, default=5, help="seconds before that")
    parser.add_argument("--processes", type=int, default=2, help="web processes of each side")
    parser.add_argument("--only", choices=tuple(SIDES), help="one side alone; then there is no ratio")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed(argv)
    # Then everything is stopped as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    pairs = data.read(options.file)[: options.pairs] if options.file else data.made(options.pairs)
    rates, lines = {}, []
    with tempfile.TemporaryDirectory(prefix="pf-") as name, database(_scratch(Path(name))) as url:
        plan = Plan(pairs, options.labelers, options.overlap, options.processes, url, Path(name))
        print(f"{len(pairs):,} pairs, overlap {plan.overlap}, {plan.labelers} labelers, {plan.processes} web processes")
        for key in [options.only] if options.only else SIDES:
            print(f"Preparing {key}", flush=True)
            with SIDES[key](plan) as side:
                rates[key] = measure(side, plan, options.seconds, options.warmup)
                if side.statements:
                    lines.append("statements " + " ".join(f"{step} {n}" for step, n in side.statements.items()))
    if len(rates) == len(SIDES):
        lines.append(f"ratio label_path_peer {rates['ours'] / rates['theirs']:.2f}")
    print("", *lines, sep="\n")


def _scratch(home: Path) -> Settings:
    return Settings(home=home, database_url=None, _env_file=None)


if __name__ == "__main__":
    main()
