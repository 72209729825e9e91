"""Play a cell in a separate process. If it fails, report the reason and continue with the other cells."""

import logging
import multiprocessing
import os
import sys
import threading
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from app.errors import PrefloopError
from benchmarks.loop.cells import Cell
from benchmarks.loop.play import play
from benchmarks.loop.workshop import NotMade, Workshop

Played = tuple[dict[str, Any], set[str]]  # a cell's result, and the outputs that other versions of the code have made


def played(cell: Cell, store: Path, base: str, *, apart: bool) -> Played:
    """Return a cell's result, or its error if it fails, so that the other cells are played.

    Args:
        apart: make missing outputs in a separate process, so that memory left by one cell does not affect the next.
    """
    try:
        return _play(cell, Workshop(store, base, makes=False))
    except NotMade:
        pass
    if not apart:
        return make(cell, store, base)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin) as pool:
        try:
            return pool.submit(make, cell, store, base).result()
        except BrokenProcessPool:
            return _failed(cell, "its process was killed, probably for memory"), set()


def make(cell: Cell, store: Path, base: str) -> Played:
    """Play a cell, and make all outputs that are missing."""
    try:
        return _play(cell, Workshop(store, base, say))
    except PrefloopError as error:
        return _failed(cell, str(error)), set()
    except Exception as error:  # noqa: BLE001  (one failure must not stop hours of other cells)
        traceback.print_exc()
        return _failed(cell, f"{type(error).__name__}: {error}"), set()


def _play(cell: Cell, workshop: Workshop) -> Played:
    return play(cell, workshop), workshop.other_code


def _failed(cell: Cell, why: str) -> dict[str, Any]:
    say(f"    failed: {why}")
    return {"cell": cell.model_dump(mode="json"), "name": cell.name, "error": why}


def begin() -> None:
    """Initialise a cell's process; it ends when its parent process ends."""
    quiet()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def quiet() -> None:
    """Suppress messages that readers of the benchmark's progress cannot act on."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)


def say(line: str) -> None:
    """Print progress to the error stream; the output stream has only results."""
    print(line, file=sys.stderr, flush=True)
