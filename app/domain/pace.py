"""How fast a run goes, and how long what it is doing will still take."""

from dataclasses import dataclass, field

LEAST_SECONDS = 5.0  # from less, nothing is said


@dataclass
class _Activity:
    """What a run does under one message: the time it took, how far it came, and the tokens it worked on."""

    total: int
    done: int
    seconds: float = 0.0
    gained: int = 0
    tokens: int = 0


@dataclass
class Pace:
    """Follows a run's reports. Activities that take turns, such as training steps and looks at held-out rows, are told
    apart by their messages: each has its own time, so that one does not slow the other's estimate.

    Times are seconds of one clock that never goes back.
    """

    now: float
    _message: str | None = None
    _activities: dict[str, _Activity] = field(default_factory=dict)

    def report(self, now: float, done: int, total: int, message: str) -> bool:
        """Takes in that `done` of `total` are done; returns whether the activity is a new one."""
        if self._message is not None:
            self._activities[self._message].seconds += now - self.now
        self.now = now
        known = self._activities.get(message)
        is_new = known is None
        if known is None or known.total != total or done < known.done:
            # Also a count that begins again: what it took before says nothing of how much there is to do now.
            known = self._activities[message] = _Activity(total, done)
        known.gained += done - known.done
        known.done = done
        self._message = message
        return is_new

    def worked(self, tokens: int) -> None:
        """Takes in that so many more tokens were trained on or sampled."""
        if self._message is not None:
            self._activities[self._message].tokens += tokens

    @property
    def seconds_left(self) -> float | None:
        """How long the present activity still takes at the pace so far; None while that cannot be said."""
        now = self._current()
        if now is None or now.gained == 0 or now.seconds < LEAST_SECONDS or now.done >= now.total:
            return None
        return now.seconds / now.gained * (now.total - now.done)

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of the present activity; None where it works on no tokens."""
        now = self._current()
        if now is None or now.tokens == 0 or now.seconds < LEAST_SECONDS:
            return None
        return now.tokens / now.seconds

    def _current(self) -> _Activity | None:
        return self._activities.get(self._message) if self._message is not None else None
