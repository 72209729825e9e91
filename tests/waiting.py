"""Wait for other processes or threads."""

import threading
import time
from collections.abc import Callable

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker


def wait_for(condition: Callable[[], object], what: str, every: float = 0.05, seconds: float = 180.0) -> None:
    """Wait for a condition. The limit is longer than anything takes on a busy machine, like two starts of a worker."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(every)


def start_and_wait_for_its_lock(work: Callable[[], None], factory: sessionmaker[Session]) -> threading.Thread:
    """Run `work` in a new thread; return once it waits for another transaction's lock, or has ended."""
    other = threading.Thread(target=work)
    other.start()
    waiting = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
    while other.is_alive():
        with factory() as watch:
            if watch.scalar(waiting):
                break
    return other
