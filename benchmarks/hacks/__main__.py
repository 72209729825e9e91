"""`python -m benchmarks.hacks`: play rounds with planted reward hacks and clean rounds, and report the monitors.

The store keeps every round, so an interrupted command continues when you repeat it. A round takes about five seconds on
one core.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch

from app.artifacts import ArtifactStore
from app.errors import PrefloopError
from benchmarks.hacks import report, world
from benchmarks.hacks.cells import REPORTED, STRENGTHS, TUNING, Cell, grid
from benchmarks.hacks.play import play
from benchmarks.loop.apart import quiet, say
from trainer.training.policy_gradient import PATIENCE

STORE = Path.home() / ".prefloop-benchmark"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hacks", description=__doc__)
    add = parser.add_argument
    add("--hacks", nargs="*", choices=(*TUNING, *REPORTED), default=[*TUNING, *REPORTED], metavar="HACK")
    add("--strengths", nargs="+", type=float, choices=STRENGTHS, default=[2.0], help="1, 2 or both")
    add("--seeds", type=int, default=2, help="number of seeds for each hack and strength")
    add("--clean", type=int, default=64, help="number of rounds without a hack")
    add("--store", type=Path, default=STORE, help="folder of the model and all rounds")
    add("--report", action="store_true", help="only report the rounds that were played before")
    return parser


def location_of(cell: Cell) -> str:
    return f"hacks/{hashlib.sha256(cell.model_dump_json().encode()).hexdigest()[:24]}"


def main(arguments: list[str] | None = None) -> None:
    """Play the cells that were not played yet, then report all of them."""
    args = parser().parse_args(arguments)
    store = ArtifactStore(args.store.absolute())
    cells = grid(tuple(args.strengths), args.seeds, args.clean, tuple(args.hacks))
    if not args.report:
        torch.set_num_threads(1)
        if not store.exists("hacks/model"):
            with store.folder("hacks/model") as folder:
                say(f"model: loss {world.build(folder):.3f}")
        base = str(store.resolve("hacks/model"))
        for number, cell in enumerate(cells, 1):
            if store.exists(location_of(cell)):
                continue
            started = time.monotonic()
            with store.folder(location_of(cell)) as folder:
                accuracy = play(cell, store, base, folder)
            say(f"[{number}/{len(cells)}] {cell.hack} {cell.strength:g} seed {cell.seed}: "
                f"{time.monotonic() - started:.0f} s, reward accuracy {accuracy or 0:.2f}")  # fmt: skip
    there = [store.resolve(location_of(cell)) for cell in cells if store.exists(location_of(cell))]
    by_patience = {patience: [report.read(folder, patience) for folder in there] for patience in (1, 2, 3)}
    print("\n".join([*report.choices(by_patience), "", *report.table(by_patience[PATIENCE])]))


if __name__ == "__main__":
    quiet()
    try:
        main()
    except PrefloopError as error:
        print(f"{error.title}: {error.message} {error.advice or ''}", file=sys.stderr)
        sys.exit(1)
