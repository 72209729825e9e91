"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], what: str, every: float = 0.05, seconds: float = 180.0) -> None:
    """Longer than anything takes on a busy machine: two starts of a worker, and until the first counts as dead."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(every)
