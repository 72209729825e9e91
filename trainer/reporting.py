"""What a run says while it works, and what it hands back: metrics, heartbeats, results.

The worker records metrics in the database; the command line and the tests use `ConsoleReporter`.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from app.errors import Conflict, PrefloopError


class RunCancelled(Conflict):
    """A person cancelled the run; nothing of it is saved."""

    title = "Cancelled"


class TrainingDiverged(PrefloopError):
    """A loss or gradient that is not a number: the weights are of no use and are not saved."""

    status = 500
    title = "Training diverged"


class Reporter(Protocol):
    """Where a recipe reports to. Names of metrics are the field's, verbatim; a slice is a column, not a name."""

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        """Records values of one optimiser step. `slice` is empty for all rows, else `kind=value` (`domain=factual`)."""

    def progress(self, done: int, total: int, message: str = "") -> None:
        """A heartbeat; call it at least once a few seconds.

        Raises:
            RunCancelled: a person cancelled the run.
        """

    def worked(self, tokens: int) -> None:
        """So many more tokens were trained on or sampled: what a run's speed is computed from."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps a page of responses, a JSON object each, for a person to read. A step's page replaces its older one."""


def with_page(pages: str, step: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON lines of pages with that of `step` at their end.

    A run that goes on from a checkpoint comes to a step again: what it wrote then, of this step or later, goes.
    """
    kept = [line for line in pages.splitlines() if json.loads(line)["step"] < step]
    return "".join(f"{line}\n" for line in [*kept, *(json.dumps({"step": step, **row}) for row in rows)])


class Metric(NamedTuple):
    """One recorded value."""

    step: int
    name: str
    slice: str
    value: float


class ConsoleReporter:
    """Keeps every metric and page in memory, prints to `stream`, and appends JSON lines to `path` where one is given.

    Pages of responses go to `samples.jsonl` beside it.
    """

    def __init__(
        self, stream: IO[str] | None = sys.stderr, path: Path | None = None, every_seconds: float = 2.0
    ) -> None:
        self.recorded: list[Metric] = []
        self.pages: dict[int, list[dict[str, Any]]] = {}
        self._stream, self._path, self._every = stream, path, every_seconds
        self._last_line = -math.inf
        if path is not None and path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a") as handle:  # the process before this one ended, or the disk, in the middle of a line
                handle.write("\n")

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        self.recorded += [Metric(step, name, slice, float(value)) for name, value in values.items()]
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": step, "slice": slice, **values}) + "\n")
        if self._stream is not None and not slice:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"step {step}  {shown}", file=self._stream)

    def progress(self, done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        if self._stream is not None and (done >= total or now - self._last_line >= self._every):
            self._last_line = now
            print(f"{message or 'progress'} {done}/{total}", file=self._stream)

    def worked(self, tokens: int) -> None:
        """Whoever reads the lines sees how fast it goes."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.pages[step] = [dict(row) for row in rows]
        if self._path is not None:
            path = self._path.with_name("samples.jsonl")
            whole = path.with_name(f"{path.name}.new")
            whole.write_text(with_page(path.read_text() if path.exists() else "", step, rows))
            os.replace(whole, path)  # a run that goes on after a kill reads it

    def values(self, name: str, slice: str = "") -> list[float]:
        """The values of one metric in the order they were recorded."""
        return [m.value for m in self.recorded if m.name == name and m.slice == slice]

    def last(self, name: str, slice: str = "") -> float:
        """The newest value of a metric. Raises KeyError when it was never recorded."""
        values = self.values(name, slice)
        if not values:
            raise KeyError(f"{name} was not recorded for slice {slice!r}")
        return values[-1]


class RewardResult(NamedTuple):
    """A trained reward model. `eval_*` are of rows it did not train on, None where there were none with a winner."""

    eval_accuracy: float | None
    eval_ece: float | None
    eval_length_bias: float | None
    eval_accuracy_gap: float | None
    """Accuracy on training pairs less that on unseen ones: how far the model has learned them by heart."""
    train_pairs: int
    heldout_pairs: int
    dropped: tuple[str, ...]
    """Why rows were left out, one sentence each with the comparisons' ids."""
    heads: tuple[str, ...]
    gains: tuple[float, ...]
    """What each head was multiplied by so that rewards have standard deviation 1 over the snapshot's responses."""
    offsets: tuple[float, ...]
    """What the loader subtracts so that they have mean 0 (kept in the config: heads have no bias)."""
    reference_samples: int
    """How many responses that mean and standard deviation are of."""
    tokens: int
    seconds: float
    precision: str
    """What frozen weights and matrix products were: with it in the spec instead of `auto`, the run can be repeated."""
    sizes: dict[str, int]
    """What was forwarded or sampled at once, by the spec's names: there they repeat the run (see `trainer.sizes`).

    `forward_tokens`, those forwarded without gradients, is no part of a spec: cores, memory and model decide.
    """
    peak_memory: int
    """Bytes that the main process held at most, on its accelerator if it has one; since the last interruption."""
    notes: tuple[str, ...] = ()
    members: int = 1
    """How many models make the score. With several, `eval_*` are cross-fitted: each comparison was judged by a member
    that did not train on it, held-out ones by all."""
    disagreement: float | None = None
    """Mean standard deviation of the score among members, in units of the score's."""
    kept_epoch: int = 1
    """The epoch whose weights were kept: the best on comparisons that members did not train on. 0: only heads were
    fitted, to a frozen trunk, so there were no epochs."""


class PolicyResult(NamedTuple):
    """A trained policy: the last values of its main metrics, what was left out, and what else a reader has to know."""

    metrics: dict[str, float]
    train_rows: int
    dropped: tuple[str, ...]
    tokens: int
    seconds: float
    precision: str
    """As in `RewardResult`, and so are the next two."""
    sizes: dict[str, int]
    peak_memory: int
    notes: tuple[str, ...] = ()
    alarms: tuple[dict[str, Any], ...] = ()
    """Of the run's monitors: `app.domain.watching.Alarm`, each as a dict."""
