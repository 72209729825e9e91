"""Processes that start with all imports done, so that a kill hits their work and not the seconds of imports."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path


@functools.cache
def context() -> ForkServerContext:
    """Return the fork server's context for all tests of a process; its imports cannot be changed later."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.jobs", "trainer.service.worker"])
    first = context.Process(target=os.getpid)  # the imports happen before this process starts
    first.start()
    first.join()
    return context


def start_worker(environment: Mapping[str, str], log: Path) -> ForkServerProcess:
    """Start `python -m trainer.service.worker`, with its log appended to a file."""
    process = context().Process(target=_work, args=(environment, log))
    process.start()
    return process


def _work(environment: Mapping[str, str], log: Path) -> None:
    import torch

    from trainer.service.worker import main

    os.environ.update(environment)
    sys.argv = ["trainer.service.worker"]
    torch.set_num_threads(1)
    with log.open("ab") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    main()
