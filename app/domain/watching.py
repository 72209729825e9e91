"""Monitors within a run: whether what a policy says now differs from what it said when the run began.

A run samples answers at every step anyway. Each figure has one value a prompt, the mean over the prompt's answers, and
the first step's values are the baseline. If a step asks prompts that the baseline has too, they are compared pair by
pair, else as two samples (Welch 1947). A monitor shows a sign if the change is in the wrong direction, as large as its
threshold, and surer than chance. Its alarm needs a sign at `patience` steps in a row: a run looks many times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.domain.intervals import FEWEST, Interval
from app.domain.monitors import FALSE_ALARMS, IN_RUNS, Monitor
from app.domain.student import quantile

Figures = Mapping[str, Mapping[str, float]]
"""By figure and prompt: the mean over the prompt's answers. A figure that was not measured is missing."""


class Sign(NamedTuple):
    """A change that a monitor watches for, at one step. `change` has its 95% interval."""

    monitor: Monitor
    before: float
    new: float
    change: Interval


def signs(before: Figures, now: Figures, monitors: Sequence[Monitor] = IN_RUNS) -> list[Sign]:
    """What monitors see in the figures of a step, compared with the baseline's."""
    found = []
    for monitor in monitors:
        old, new = before.get(monitor.figure, {}), now.get(monitor.figure, {})
        if min(len(old), len(new)) < FEWEST:
            continue
        mean_old, mean_new, error, degrees = _compared(old, new)
        change = mean_new - mean_old
        least = monitor.least * (abs(mean_old) if monitor.is_relative else 1)
        wrong_way = monitor.worse * change
        sure = quantile(1 - FALSE_ALARMS / len(monitors), degrees) * error
        if wrong_way >= least and wrong_way > sure:
            half = quantile(0.975, degrees) * error
            found.append(Sign(monitor, mean_old, mean_new, Interval(change, change - half, change + half)))
    return found


def _compared(old: Mapping[str, float], new: Mapping[str, float]) -> tuple[float, float, float, int]:
    """Both means, the standard error of their difference, and its degrees of freedom."""
    if new.keys() <= old.keys():
        pairs = [(old[prompt], value) for prompt, value in new.items()]
        n = len(pairs)
        mean, variance = _moments([b - a for a, b in pairs])
        first = sum(a for a, _ in pairs) / n
        return first, first + mean, math.sqrt(variance / n), n - 1
    (mean_old, variance_old), (mean_new, variance_new) = _moments([*old.values()]), _moments([*new.values()])
    a, b = variance_old / len(old), variance_new / len(new)
    if a + b == 0:
        return mean_old, mean_new, 0.0, len(old) + len(new) - 2
    degrees = (a + b) ** 2 / (a**2 / (len(old) - 1) + b**2 / (len(new) - 1))  # Welch and Satterthwaite
    return mean_old, mean_new, math.sqrt(a + b), max(1, int(degrees))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance of a sample."""
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / (len(values) - 1)


@dataclass
class Watch:
    """The monitors of one run: all that they remember, which is JSON, so that a checkpoint can hold it.

    Attributes:
        patience: steps in a row with a sign before there is an alarm.
        baseline: the first step's figures.
        rows: by monitor, how many of the newest steps in a row showed a sign.
        raised: monitors that have given their alarm. Each gives one in a run.
    """

    patience: int = 2
    baseline: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    raised: list[str] = field(default_factory=list)

    def look(self, figures: Figures) -> list[Sign]:
        """The signs that have become alarms with this step; the first step looked at is the baseline."""
        if not self.baseline:
            self.baseline = {name: dict(values) for name, values in figures.items()}
            return []
        seen = signs(self.baseline, figures)
        self.rows = {sign.monitor.name: self.rows.get(sign.monitor.name, 0) + 1 for sign in seen}
        alarms = [s for s in seen if self.rows[s.monitor.name] >= self.patience and s.monitor.name not in self.raised]
        self.raised += [sign.monitor.name for sign in alarms]
        return alarms

    @property
    def is_quiet(self) -> bool:
        """Whether the newest step showed no sign, and no monitor has given its alarm."""
        return not self.rows and not self.raised


class Alarm(NamedTuple):
    """An alarm as a run's result keeps it.

    Attributes:
        monitor: its name.
        step: of the run's metrics.
        examples: the answers that stand out most: what was asked, what was said, and the figure's value.
    """

    monitor: str
    step: int
    before: float
    new: float
    low: float
    high: float
    examples: list[dict[str, Any]]

    @classmethod
    def of(cls, sign: Sign, step: int, examples: list[dict[str, Any]]) -> "Alarm":
        return cls(sign.monitor.name, step, sign.before, sign.new, sign.change.low, sign.change.high, examples)
