"""A cache for values that take long to compute."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

from app.errors import Unavailable

T = TypeVar("T")
# maximum delay between a change's timestamp and when other transactions see the change
COMMITTING = timedelta(seconds=10)


class Computed(NamedTuple, Generic[T]):
    value: T
    at: datetime
    seconds: float

    @property
    def begun(self) -> datetime:
        return self.at - timedelta(seconds=self.seconds)


class Cache(Generic[T]):
    """Caches slow values for twenty times their computing time, so a busy page costs at most a twentieth of a core.

    A value that takes less than `worth_keeping` seconds is computed every time. At most `MOST` values are kept, because
    each is as large as a page of figures.

    Args:
        at_once: how many requests may compute or wait for a value at the same time; None: no limit. Each of them holds
            a thread and a connection, which labelers need too. `COMPUTING` of these requests compute at the same time.
    """

    MOST = 32
    KEPT_FOR = 20
    COMPUTING = 2

    def __init__(self, worth_keeping: float = 1.0, at_once: int | None = None) -> None:
        self.worth_keeping = worth_keeping
        self.at_once = at_once
        self._inside = 0
        self._computing = threading.Semaphore(self.COMPUTING)
        self._values: dict[Hashable, Computed[T]] = {}
        self._locks: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def cached(self, key: Hashable) -> Computed[T] | None:
        """Return the cached value if it is new enough, else None."""
        with self._guard:
            now = datetime.now(UTC)
            for old in [old for old, found in self._values.items() if now > found.at + self._lasting(found)]:
                del self._values[old]
            return self._values.get(key)

    def get(self, key: Hashable, compute: Callable[[], T], since: datetime | None = None) -> Computed[T]:
        """Return the cached value, or compute a new one. Requests that come while it is being computed wait for it.

        Args:
            since: when the caller changed the underlying data; a value computed from older data is not used.

        Raises:
            Unavailable: `at_once` requests compute or wait already.
        """
        if found := self._new_enough(key, since):
            return found
        with self._let_in(), self._lock_of(key):
            if found := self._new_enough(key, since):
                return found
            with contextlib.nullcontext() if self.at_once is None else self._computing:
                began = time.perf_counter()
                value = compute()
                found = Computed(value, datetime.now(UTC), time.perf_counter() - began)
            if found.seconds > self.worth_keeping:
                with self._guard:
                    self._values.pop(key, None)
                    self._values[key] = found
                    for oldest in list(self._values)[: -self.MOST]:
                        del self._values[oldest]
            return found

    def _new_enough(self, key: Hashable, since: datetime | None) -> Computed[T] | None:
        found = self.cached(key)
        return found if found and (since is None or found.begun > since + COMMITTING) else None

    def _lock_of(self, key: Hashable) -> threading.Lock:
        with self._guard:
            return self._locks[key]

    @property
    def is_full(self) -> bool:
        """Tell whether the maximum number of requests compute or wait."""
        return self.at_once is not None and self._inside >= self.at_once

    @contextlib.contextmanager
    def _let_in(self) -> Iterator[None]:
        with self._guard:
            if self.is_full:
                raise Unavailable(
                    "Many people are waiting for figures like these.",
                    "Reload the page in half a minute.",
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._guard:
                self._inside -= 1

    def _lasting(self, found: Computed[T]) -> timedelta:
        return timedelta(seconds=self.KEPT_FOR * found.seconds)
