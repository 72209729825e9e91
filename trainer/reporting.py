"""Reports of a run while it works, and its result: metrics, heartbeats, sample pages, results.

The worker records reports in the database; the command line and the tests use `ConsoleReporter`.
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
    """A person cancelled the run; no model is saved."""

    title = "Cancelled"


class TrainingDiverged(PrefloopError):
    """A loss or gradient is not a finite number, so the weights are useless and are not saved."""

    status = 500
    title = "Training diverged"


class Reporter(Protocol):
    """The interface for a recipe's reports. Metrics have the field's usual names; a slice is not part of the name."""

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        """Record values of one optimiser step. `slice` is empty for all rows, else `kind=value` (`domain=factual`)."""

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Send a heartbeat; call this at least every few seconds.

        Raises:
            RunCancelled: a person cancelled the run.
        """

    def worked(self, tokens: int) -> None:
        """Count tokens that were trained on or sampled; the run's speed is computed from them."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store a page of responses, one JSON object each, for people to read. It replaces an older page of a step."""


def with_page(pages: str, step: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """Append the page of `step` to the JSON lines of earlier pages.

    A resumed run repeats steps after its checkpoint, so older pages of this step and later steps are removed.
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
    """Keeps all metrics and pages in memory, prints to `stream`, and appends metrics to `path` as JSON lines.

    If `path` is given, pages of responses are written to `samples.jsonl` in the same folder.
    """

    def __init__(
        self, stream: IO[str] | None = sys.stderr, path: Path | None = None, every_seconds: float = 2.0
    ) -> None:
        self.recorded: list[Metric] = []
        self.pages: dict[int, list[dict[str, Any]]] = {}
        self._stream, self._path, self._every = stream, path, every_seconds
        self._last_line = -math.inf
        if path is not None and path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a") as handle:  # an earlier process was killed, or the disk was full, within a line
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
        """Do nothing: the printed lines show the speed."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.pages[step] = [dict(row) for row in rows]
        if self._path is not None:
            path = self._path.with_name("samples.jsonl")
            whole = path.with_name(f"{path.name}.new")
            whole.write_text(with_page(path.read_text() if path.exists() else "", step, rows))
            os.replace(whole, path)  # atomic, because a resumed run reads this file after a kill

    def values(self, name: str, slice: str = "") -> list[float]:
        """Return the values of a metric in the order they were recorded."""
        return [m.value for m in self.recorded if m.name == name and m.slice == slice]

    def last(self, name: str, slice: str = "") -> float:
        """Return the newest value of a metric. Raises KeyError if it was never recorded."""
        values = self.values(name, slice)
        if not values:
            raise KeyError(f"{name} was not recorded for slice {slice!r}")
        return values[-1]


class RewardResult(NamedTuple):
    """Result of training a reward model. `eval_*` are measured on unseen rows; None if none of them has a winner."""

    eval_accuracy: float | None
    eval_ece: float | None
    eval_length_bias: float | None
    eval_accuracy_gap: float | None
    """Accuracy on training pairs minus accuracy on unseen pairs: a measure of overfitting."""
    train_pairs: int
    heldout_pairs: int
    dropped: tuple[str, ...]
    """Sentences that say why rows were left out, with the comparisons' ids."""
    heads: tuple[str, ...]
    gains: tuple[float, ...]
    """Factor of each head that gives rewards standard deviation 1 over the snapshot's responses."""
    offsets: tuple[float, ...]
    """Values that the loader subtracts so that rewards have mean 0 (in the config, because heads have no bias)."""
    reference_samples: int
    """Number of responses behind this mean and standard deviation."""
    tokens: int
    seconds: float
    precision: str
    """The dtype of frozen weights and matrix products. To repeat the run, write it into the spec instead of `auto`."""
    sizes: dict[str, int]
    """The chosen batch sizes by the spec's names. To repeat the run, write them into the spec (see
    `trainer.models.sizes`).

    `forward_tokens`, for forward passes without gradients, is not in the spec: it depends on cores, memory and model.
    """
    peak_memory: int
    """Peak memory of the main process in bytes, on its accelerator if it has one, since the last interruption."""
    notes: tuple[str, ...] = ()
    members: int = 1
    """Number of models behind the score. With several, `eval_*` are cross-fitted: each training comparison is scored by
    the member that did not train on it, held-out comparisons by all members."""
    disagreement: float | None = None
    """Mean standard deviation of the score among members, in units of the score's standard deviation."""
    kept_epoch: int = 1
    """The epoch whose weights were kept: the best on comparisons that members did not train on. 0 if only heads on a
    frozen trunk were fitted, without epochs."""


class PolicyResult(NamedTuple):
    """Result of training a policy: last values of its main metrics, left-out rows, and notes for readers."""

    metrics: dict[str, float]
    train_rows: int
    dropped: tuple[str, ...]
    tokens: int
    seconds: float
    precision: str
    """As in `RewardResult`, like the next two fields."""
    sizes: dict[str, int]
    peak_memory: int
    notes: tuple[str, ...] = ()
    alarms: tuple[dict[str, Any], ...] = ()
    """The alarms of the run's monitors: `app.domain.watching.Alarm`, each as a dict."""
