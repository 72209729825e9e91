"""Send metrics of runs to TensorBoard files, MLflow or Weights & Biases, through accelerate's trackers.

An error in a tracker never ends a run: the log names the tracker, and it gets no more metrics of that run.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

log = logging.getLogger(__name__)

PROJECT = "prefloop"
FOLDER = "tensorboard"  # inside the artifact folder
_REFUSED = re.compile(r"[^A-Za-z0-9_./ -]")  # characters that MLflow refuses in names


def _of_slice(slice: str) -> str:
    """Return a slice's name with only the characters that trackers accept.

    If characters are lost, a digest is added so that different slices keep different names. Slices contain text of the
    project's owner, and MLflow refuses names that look like paths to other folders, such as `../..`.
    """
    kept = _REFUSED.sub("_", slice.replace("/", "_"))
    lost = kept != slice.replace("=", "_", 1)
    return f"{kept}-{hashlib.sha256(slice.encode()).hexdigest()[:6]}" if lost else kept


class Trackers:
    """The trackers of one run. They start with its first metrics, so a run without metrics leaves no trace.

    Args:
        names: names from `app.settings.TRACKERS`.
        run_name: the run's name in the trackers.
        folder: folder of the TensorBoard files of all runs.
    """

    def __init__(self, names: Sequence[str], run_name: str, folder: Path) -> None:
        self._names, self._run_name, self._folder = names, run_name, folder
        self._started: dict[str, GeneralTracker] | None = None

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        """Log the values of one step; a slice becomes a prefix of their names."""
        if self._started is None:
            self._started = {}
            for name in self._names:
                self._attempt(name, lambda name=name: self._start(name))  # type: ignore[misc]
        first = f"{_of_slice(slice)}/" if slice else ""
        named = {_REFUSED.sub("_", f"{first}{name}"): float(value) for name, value in values.items()}
        for name, tracker in list(self._started.items()):
            self._attempt(name, lambda tracker=tracker: tracker.log(named, step=step))  # type: ignore[misc]

    def forget(self) -> None:
        """Remove the files of an earlier attempt that the run does not resume."""
        shutil.rmtree(self._folder / self._run_name, ignore_errors=True)

    def close(self) -> None:
        """Finish all trackers at the end of the run or of this attempt."""
        for name, tracker in list((self._started or {}).items()):
            self._attempt(name, tracker.finish)
        self._started = {}

    def _start(self, name: str) -> None:
        tracker = self._made(name)
        tracker.start()
        assert self._started is not None
        self._started[name] = tracker

    def _made(self, name: str) -> GeneralTracker:
        match name:
            case "tensorboard":
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # like artifacts: only for their owner
                return TensorBoardTracker(self._run_name, str(self._folder))
            case "mlflow":
                return MLflowTracker(PROJECT, run_name=self._run_name)
            case _:
                return WandBTracker(PROJECT, name=self._run_name)

    def _attempt(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - another program may raise anything
            # Log the text only: the exception would keep its frames alive, and with them the run's models.
            log.warning("%s takes no metrics of this run: %s", name, f"{type(error).__name__}: {error}")
            if self._started is not None:
                self._started.pop(name, None)
