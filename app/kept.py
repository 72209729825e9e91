"""What takes long to compute, kept for a while."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Computed(NamedTuple, Generic[T]):
    value: T
    at: datetime
    seconds: float


class Kept(Generic[T]):
    """Values that took long, kept for twenty times what they cost: a busy page costs a twentieth of a core at most.

    A value that takes less than a second is computed again each time. Of the others the newest `MOST` stay, as each is
    as large as a page of figures.
    """

    MOST = 32
    KEPT_FOR = 20
    WORTH_KEEPING = 1.0  # seconds

    def __init__(self) -> None:
        self._kept: dict[Hashable, Computed[T]] = {}
        self._locks: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def kept(self, key: Hashable) -> Computed[T] | None:
        """The value, if there is one that is new enough."""
        with self._guard:
            now = datetime.now(UTC)
            for old in [old for old, found in self._kept.items() if now > found.at + self._lasting(found)]:
                del self._kept[old]
            return self._kept.get(key)

    def get(self, key: Hashable, compute: Callable[[], T]) -> Computed[T]:
        """The value kept, else a new one. Who asks while it is being computed waits for that one."""
        with self._guard:
            lock = self._locks[key]
        with lock:
            if found := self.kept(key):
                return found
            began = time.perf_counter()
            value = compute()
            found = Computed(value, datetime.now(UTC), time.perf_counter() - began)
            if found.seconds > self.WORTH_KEEPING:
                with self._guard:
                    self._kept.pop(key, None)
                    self._kept[key] = found
                    for oldest in list(self._kept)[: -self.MOST]:
                        del self._kept[oldest]
            return found

    def _lasting(self, found: Computed[T]) -> timedelta:
        return timedelta(seconds=self.KEPT_FOR * found.seconds)
