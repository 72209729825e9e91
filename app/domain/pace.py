"""The speed of a run and the remaining time of its current activity."""

from dataclasses import dataclass, field

LEAST_SECONDS = 5.0  # minimum time before an estimate


@dataclass
class _Activity:
    """The work of a run under one message: its time, progress and tokens."""

    total: int
    done: int
    seconds: float = 0.0
    gained: int = 0
    tokens: int = 0


@dataclass
class Pace:
    """Estimates a run's speed from its reports.

    Activities that alternate, such as training steps and evaluation on held-out rows, are distinguished by their
    messages. Each has its own time, so that one does not distort the other's estimate.

    Times are seconds of a monotonic clock.
    """

    now: float
    _message: str | None = None
    _activities: dict[str, _Activity] = field(default_factory=dict)

    def report(self, now: float, done: int, total: int, message: str) -> bool:
        """Record that `done` of `total` are done; return whether the activity is new."""
        if self._message is not None:
            self._activities[self._message].seconds += now - self.now
        self.now = now
        known = self._activities.get(message)
        is_new = known is None
        if known is None or known.total != total or done < known.done:
            # Start over for a count that restarts too: its earlier time is not a basis for the new work.
            known = self._activities[message] = _Activity(total, done)
        known.gained += done - known.done
        known.done = done
        self._message = message
        return is_new

    def worked(self, tokens: int) -> None:
        """Record tokens that were trained on or sampled."""
        if self._message is not None:
            self._activities[self._message].tokens += tokens

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds of the current activity at its speed so far; None as long as there is no estimate."""
        now = self._current()
        if now is None or now.gained == 0 or now.seconds < LEAST_SECONDS or now.done >= now.total:
            return None
        return now.seconds / now.gained * (now.total - now.done)

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of the current activity; None if it does not count tokens, or has just started."""
        now = self._current()
        if now is None or now.tokens == 0 or now.seconds < LEAST_SECONDS:
            return None
        return now.tokens / now.seconds

    def _current(self) -> _Activity | None:
        return self._activities.get(self._message) if self._message is not None else None
