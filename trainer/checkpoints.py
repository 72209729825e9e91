"""Checkpoints: all that a training run needs to go on as if it had never been interrupted, kept in the artifact store.

A checkpoint is a folder `<run>/<spec>/step-00000040` with `tensors.safetensors` (weights, moments, random states, a
rollout), `state.json` (counters, the recipe's own state) and `digest`. It appears whole or not at all; one that is
damaged later is noticed by its digest when it is read, and the one before it is taken.
"""

import contextlib
import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.artifacts import ArtifactStore, digest_folder

log = logging.getLogger(__name__)

SHARE_OF_TIME = 0.05  # writing checkpoints takes at most this share, however large they are


class Checkpoint(NamedTuple):
    """What was saved after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, under `location` in the store.

    Args:
        spec: what the run does. Each spec has a folder of its own: a run whose spec was changed begins anew, and what
            was kept of it before is neither taken nor lost.
        every_seconds: least time between two (0: whenever asked).
        keep: how many are kept; at least 1.
        on_saved: called with the step once a checkpoint is in place.
    """

    def __init__(
        self,
        store: ArtifactStore,
        location: str,
        spec: BaseModel,
        every_seconds: float = 60.0,
        keep: int = 2,
        on_saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.store, self.keep, self.on_saved = store, max(1, keep), on_saved
        self.location = f"{location}/{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]}"
        self._pause = self.every_seconds = every_seconds
        self._last = time.monotonic()

    @property
    def folder(self) -> Path:
        return self.store.root / self.location

    def due(self) -> bool:
        """Whether enough time has gone by since the last one."""
        return time.monotonic() - self._last >= self._pause

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint and removes the oldest ones.

        Raises:
            StorageFull: no room; those saved before stay.
        """
        started = time.monotonic()
        contents = {"step": step, "state": dict(state)}
        with self.store.folder(f"{self.location}/step-{step:08d}") as folder:
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
                folder / "tensors.safetensors",
            )
            (folder / "state.json").write_text(json.dumps(contents))
            digest = digest_folder(folder)
            (folder / "digest").write_text(digest)
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        if self.every_seconds:
            self._pause = max(self.every_seconds, (self._last - started) / SHARE_OF_TIME)
        self.on_saved(step)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none."""
        for folder in self._newest_first():
            try:
                expected = (folder / "digest").read_text()
                if digest_folder(folder, leave_out=("digest",)) != expected:
                    log.warning(
                        "The checkpoint %s is damaged: its digest is another. Taking the one before.", folder.name
                    )
                    continue
                contents = json.loads((folder / "state.json").read_text())
                tensors = load_file(folder / "tensors.safetensors")
            except (OSError, ValueError, KeyError) as error:
                log.warning("The checkpoint %s cannot be read (%s). Taking the one before.", folder.name, error)
                continue
            log.info("Going on from step %d.", contents["step"])
            return Checkpoint(contents["step"], tensors, contents["state"])
        if others := [path for path in self.folder.parent.glob("*/step-*") if path.parent != self.folder]:
            log.warning("The checkpoints under %s are of another specification and are not taken.", others[0].parent)
        return None

    def remembered(self, name: str, decide: Callable[[], str]) -> str:
        """What `decide` said when the run first started: what depends on a measurement must not change half-way."""
        path = self.folder / name
        if not path.exists():
            with self.store.file(f"{self.location}/{name}") as staging:
                staging.write_text(decide())
        return path.read_text()

    def any(self) -> bool:
        """Whether there is one to go on from, whole or not."""
        return bool(self._newest_first())

    def remove(self) -> None:
        """Removes all of them: the run has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another spec's are there, or nothing is
            self.folder.parent.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


# ---- the random states of every library ------------------------------------------------------------------------------


def random_states() -> dict[str, Tensor]:
    """The states of the global generators of Python, NumPy and torch."""
    _version, words, _gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    states = {
        "rng/python": torch.tensor(words, dtype=torch.int64),
        "rng/numpy": torch.tensor([*numpy_state[1].tolist(), numpy_state[2]], dtype=torch.int64),
        "rng/torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["rng/cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Puts the generators back to where `random_states` found them."""
    random.setstate((3, tuple(states["rng/python"].tolist()), None))
    *words, position = states["rng/numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, 0, 0.0))
    torch.set_rng_state(states["rng/torch"])
    if "rng/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng/cuda"])
