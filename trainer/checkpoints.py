"""Checkpoints in the artifact store: everything that a training run needs to resume as if never interrupted.

A checkpoint is a folder `<run>/<spec>/step-00000040` with `tensors.safetensors` (weights, moments, random states, a
rollout), `state.json` (counters, the recipe's own state) and `digest`. It is written atomically, next to existing ones.
Its digest is checked when it is loaded; if a checkpoint is damaged, the previous one is used.
"""

import contextlib
import hashlib
import hmac
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.artifacts import ArtifactStore, digest_folder

log = logging.getLogger(__name__)

PHASES = "phases"
SHARE_OF_TIME = 0.05  # maximum share of the time for writing checkpoints, however large they are


class Checkpoint(NamedTuple):
    """The data saved after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, under `location` in the store.

    Args:
        spec: the run's spec. Each spec has its own folder: a run with a changed spec starts over, and the checkpoints
            of the old spec are neither used nor deleted.
        every_seconds: minimum time between two checkpoints (0: at every call).
        keep: number of checkpoints to keep, at least 1.
        on_saving: called before a checkpoint is written, to store the metrics reported so far: a resumed run does not
            report them again.
        on_saved: called with the step when a checkpoint is in place.
        key: key for signatures, so that a checkpoint from somebody else is not used (empty: only damage is detected).
    """

    def __init__(
        self,
        store: ArtifactStore,
        location: str,
        spec: BaseModel,
        every_seconds: float = 60.0,
        keep: int = 2,
        on_saving: Callable[[], None] = lambda: None,
        on_saved: Callable[[int], None] = lambda step: None,
        key: bytes = b"",
    ) -> None:
        self.key = key
        self.keep, self.on_saving, self.on_saved = max(1, keep), on_saving, on_saved
        self.folder = store.root / location / hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
        self._store = ArtifactStore(self.folder)  # its own store: staging then holds only leftovers of this run
        self._pause = self.every_seconds = every_seconds
        self._last = time.monotonic()
        self._damaged: set[Path] = set()

    def due(self) -> bool:
        """Return whether enough time has passed since the last checkpoint."""
        return time.monotonic() - self._last >= self._pause

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint and remove the oldest ones.

        Raises:
            StorageFull: the disk has no room; earlier checkpoints stay.
        """
        self.on_saving()
        started = time.monotonic()
        contents = {"step": step, "state": dict(state)}
        name = self._new_name(step)
        with self._store.folder(name) as folder:
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
                folder / "tensors.safetensors",
            )
            (folder / "state.json").write_text(json.dumps(contents))
            signature = self._signature(folder, name)
            (folder / "digest").write_text(signature)
        # Damaged checkpoints do not count, even those of later steps: otherwise the new one might be removed.
        there = self._newest_first()
        kept = [path for path in there if path not in self._damaged][: self.keep]
        for old in set(there) - set(kept):
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        if self.every_seconds:
            self._pause = max(self.every_seconds, (self._last - started) / SHARE_OF_TIME)
        self.on_saved(step)

    def load(self) -> Checkpoint | None:
        """Load the newest undamaged checkpoint; None if there is none. No other process may write one meanwhile."""
        self._store.sweep()
        for folder in self._newest_first():
            try:
                if not hmac.compare_digest(self._signature(folder, folder.name), (folder / "digest").read_text()):
                    raise ValueError("its digest is another")
                contents = json.loads((folder / "state.json").read_text())
                tensors = load_file(folder / "tensors.safetensors")
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                log.warning("The checkpoint %s is damaged: %s. Taking the one before.", folder.name, error)
                self._damaged.add(folder)
                continue
            log.info("Going on from step %d.", contents["step"])
            return Checkpoint(contents["step"], tensors, contents["state"])
        if others := [path for path in self.folder.parent.glob("*/step-*") if path.parent != self.folder]:
            log.warning(
                "The checkpoints under %s are of another spec, other rows or other models, and are not taken.",
                others[0].parent,
            )
        return None

    def remembered(self, name: str, decide: Callable[[], str]) -> str:
        """Return the result of `decide` from the run's first start: a measured choice must not change during a run."""
        path = self.folder / name
        if not path.exists():
            with self._store.file(name) as staging:
                staging.write_text(decide())
        return path.read_text()

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint, damaged or not; 0 without a checkpoint."""
        return next((int(path.name.removeprefix("step-").rstrip("+")) for path in self._newest_first()), 0)

    def any(self) -> bool:
        """Return whether there is a checkpoint, damaged or not, or a finished phase to resume from."""
        return bool(self._newest_first()) or (self.folder / PHASES).exists()

    @property
    def phases(self) -> ArtifactStore:
        """The store for results of finished phases, for runs with several phases; it exists until the run is done."""
        return ArtifactStore(self.folder / PHASES)

    def of_phase(self, name: str, spec: BaseModel) -> "Checkpoints":
        """Return the checkpoints of a phase that runs another recipe."""
        return Checkpoints(
            *(self.phases, f"checkpoints/{name}", spec, self.every_seconds, self.keep, self.on_saving, self.on_saved),
            self.key,
        )

    def remove(self) -> None:
        """Remove all checkpoints at the end of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the folder has checkpoints of another spec, or does not exist
            self.folder.parent.rmdir()

    def _signature(self, folder: Path, name: str) -> str:
        """Return a digest of the folder's content and its run, so that another run's checkpoint is refused."""
        whose = f"{self.folder.parent.name}/{self.folder.name}/{name}"
        content = digest_folder(folder, leave_out=("digest",))
        return hmac.new(self.key, f"{whose}\0{content}".encode(), hashlib.sha256).hexdigest()

    def _new_name(self, step: int) -> str:
        """Return the name of a new checkpoint.

        A checkpoint of the same step is not replaced but gets a successor: a kill during the replacement would leave
        neither of them.
        """
        name = f"step-{step:08d}"
        same_step = sorted(self.folder.glob(f"{name}*"))
        return f"{same_step[-1].name}+" if same_step else name

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)  # `step-00000040+` sorts after `step-00000040`


# ---- random states ---------------------------------------------------------------------------------------------------


def random_states() -> dict[str, Tensor]:
    """Return the states of the global generators of Python, NumPy and torch."""
    _version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    _name, keys, position, has_gauss, numpy_gauss = numpy_state
    # Normal numbers are generated in pairs: the second number of the last pair may not be used yet.
    waiting = [math.nan if gauss is None else gauss, numpy_gauss if has_gauss else math.nan]
    states = {
        "rng/python": torch.tensor(words, dtype=torch.int64),
        "rng/numpy": torch.tensor([*keys.tolist(), position], dtype=torch.int64),
        "rng/gauss": torch.tensor(waiting, dtype=torch.float64),
        "rng/torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["rng/cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Restore the states that `random_states` returned."""
    gauss, numpy_gauss = (None if math.isnan(number) else number for number in states["rng/gauss"].tolist())
    random.setstate((3, tuple(states["rng/python"].tolist()), gauss))
    *words, position = states["rng/numpy"].tolist()
    keys = np.array(words, dtype=np.uint32)
    np.random.set_state(("MT19937", keys, position, int(numpy_gauss is not None), numpy_gauss or 0.0))
    torch.set_rng_state(states["rng/torch"])
    if "rng/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng/cuda"])
