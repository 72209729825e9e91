"""What takes long to compute, kept for a while."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
COMMITTING = timedelta(seconds=10)  # between the moment that a change bears and when others see it, at most


class Computed(NamedTuple, Generic[T]):
    value: T
    at: datetime
    seconds: float

    @property
    def begun(self) -> datetime:
        return self.at - timedelta(seconds=self.seconds)


class Kept(Generic[T]):
    """Values that took long, kept for twenty times what they cost: a busy page costs a twentieth of a core at most.

    A value that takes less than `worth_keeping` seconds is computed again each time. Of the others the newest `MOST`
    stay, as each is as large as a page of figures.
    """

    MOST = 32
    KEPT_FOR = 20

    def __init__(self, worth_keeping: float = 1.0) -> None:
        self.worth_keeping = worth_keeping
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

    def get(self, key: Hashable, compute: Callable[[], T], since: datetime | None = None) -> Computed[T]:
        """The value kept, else a new one. Who asks while it is being computed waits for that one.

        Args:
            since: the value must have been begun after that moment, at which whoever asks changed what it is made of.
        """
        with self._guard:
            lock = self._locks[key]
        with lock:
            found = self.kept(key)
            if found and (since is None or found.begun > since + COMMITTING):
                return found
            began = time.perf_counter()
            value = compute()
            found = Computed(value, datetime.now(UTC), time.perf_counter() - began)
            if found.seconds > self.worth_keeping:
                with self._guard:
                    self._kept.pop(key, None)
                    self._kept[key] = found
                    for oldest in list(self._kept)[: -self.MOST]:
                        del self._kept[oldest]
            return found

    def _lasting(self, found: Computed[T]) -> timedelta:
        return timedelta(seconds=self.KEPT_FOR * found.seconds)
