"""Plays a cell in a process of its own, and says of one that fails why, so that the others are played."""

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

Played = tuple[dict[str, Any], set[str]]  # a cell's result, and which outputs other code had made


def played(cell: Cell, store: Path, base: str, *, apart: bool) -> Played:
    """A cell's result; of one that fails what it says, so that the others are played.

    Args:
        apart: make what is not there in a process of its own: what one cell leaves in memory, the next does not pay.
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
    """Plays a cell, whatever it takes."""
    try:
        return _play(cell, Workshop(store, base, say))
    except PrefloopError as error:
        return _failed(cell, str(error)), set()
    except Exception as error:  # noqa: BLE001  (hours of other cells must not wait for a person)
        traceback.print_exc()
        return _failed(cell, f"{type(error).__name__}: {error}"), set()


def _play(cell: Cell, workshop: Workshop) -> Played:
    return play(cell, workshop), workshop.other_code


def _failed(cell: Cell, why: str) -> dict[str, Any]:
    say(f"    failed: {why}")
    return {"cell": cell.model_dump(mode="json"), "name": cell.name, "error": why}


def begin() -> None:
    """How a cell's process begins: the command takes it along when it is killed."""
    quiet()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def quiet() -> None:
    """Leaves out what nobody who reads the benchmark's progress can act on."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)


def say(line: str) -> None:
    """Progress goes to the error stream: the other one has results only."""
    print(line, file=sys.stderr, flush=True)
