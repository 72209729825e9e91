"""Log-probs of completions without gradients, with a cache for reference models.

A reference model never changes. So its log-probs are stored under its weights' digest and its precision, and reused in
later epochs, in resumed runs and in later rounds.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.artifacts import ArtifactStore, digest_folder
from app.specs import ModelRef
from trainer.batching.chat import TokenSequence
from trainer.batching.data import chunks
from trainer.batching.packing import Packed
from trainer.models.forwarding import Group, Report, forward_groups, ignore
from trainer.models.inspection import ADAPTER_CONFIG, local_folder
from trainer.models.policy import TokenOutputs, completion_outputs, trunk_of
from trainer.processes import accelerator, the_main_processes
from trainer.speed.precision import computes_in

log = logging.getLogger(__name__)

CHUNK = 256  # groups whose layout is decided together
SAVE_SECONDS = 60.0


def completion_logps(
    forward: Callable[[Packed], TokenOutputs],
    groups: Sequence[Group],
    share: bool,
    pad_id: int,
    tokens: int,
    report: Report = ignore,
) -> Tensor:
    """Sums (S,) of the log-probs of all completions' tokens, as `forward_groups` returns them."""

    def sums(packed: Packed) -> Tensor:
        return packed.per_sequence(forward(packed).logps)[:, None]

    return forward_groups(sums, groups, 1, share, pad_id, tokens, report).squeeze(-1)


def reference_logps(
    store: ArtifactStore,
    ref: ModelRef,
    model: Any,
    groups: Sequence[Group],
    share: bool,
    pad_id: int,
    tokens: int,
    report: Report = ignore,
) -> Tensor:
    """Return the `completion_logps` of a reference: read those in the store, compute the others and store them.

    Batches are formed within fixed chunks of groups, and a chunk is stored as a whole or not at all. So a run that was
    killed here and resumed computes the same numbers, bit for bit.

    Args:
        ref: the reference, with resolved locations.
        model: the loaded reference.

    Raises:
        StorageFull: the disk has no room for the results.
    """
    kept = KeptLogps(store, ref, computes_in(trunk_of(model)))
    sums: list[Tensor] = []
    done, saved = 0, time.monotonic()
    for chunk in chunks(groups, CHUNK):
        keys = [[key_of(sequence) for sequence in group] for group in chunk]
        # All processes must compute the same groups, so only the main one looks up what is missing.
        missing = the_main_processes(partial(kept.lacks, keys))
        if missing:
            computed = completion_logps(
                lambda packed: completion_outputs(model, packed),
                [chunk[i] for i in missing],
                share,
                pad_id,
                tokens,
                lambda n, done=done: report(done + n),  # type: ignore[misc]
            )
            kept.add([key for i in missing for key in keys[i]], computed)
            if time.monotonic() - saved > SAVE_SECONDS:
                kept.save()
                saved = time.monotonic()
        sums.append(the_main_processes(partial(kept.of, keys)))
        done += len(chunk)
    kept.save()
    return torch.cat(sums) if sums else torch.zeros(0)


def key_of(sequence: TokenSequence) -> bytes:
    """Return a 16-byte hash of a prompt and its completion."""
    tokens = np.array([len(sequence.prompt), *sequence.prompt, *sequence.completion], dtype="<i4")
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()


class KeptLogps:
    """A cache of one model's log-probs in one precision; 20 bytes per sequence on disk, about 150 in memory.

    The file `reference-logps/<digest>-<dtype>.safetensors` holds `keys` (N, 16) uint8 and `logps` (N,) float32, the
    sums over tokens. The file only saves work: it may be deleted at any time, and an unreadable file counts as empty.
    If two runs write at the same time, the entries of one may be lost. For a model without a local folder nothing is
    stored.
    """

    def __init__(self, store: ArtifactStore, ref: ModelRef, dtype: torch.dtype) -> None:
        self.store = store
        self.location: str | None = None  # None in the other processes too, because only the main one reads the cache
        if accelerator().is_main_process and (digest := model_digest(ref)):
            self.location = f"reference-logps/{digest}-{str(dtype).removeprefix('torch.')}.safetensors"
        self.known = self._read()
        self._unsaved: dict[bytes, float] = {}

    def lacks(self, keys: Sequence[Sequence[bytes]]) -> list[int]:
        """Return the indices of groups with at least one unknown key."""
        return [i for i, group in enumerate(keys) if not all(key in self.known for key in group)]

    def add(self, keys: Sequence[bytes], logps: Tensor) -> None:
        new = dict(zip(keys, logps.tolist(), strict=True))
        self._unsaved |= new
        self.known |= new

    def of(self, keys: Sequence[Sequence[bytes]]) -> Tensor:
        """Return the sums (N,) float32 for groups of known keys."""
        return torch.tensor([self.known[key] for group in keys for key in group])

    def save(self) -> None:
        """Add new entries to the file. Raises StorageFull."""
        # Values that are not finite come from a broken model. The run fails with its own error; do not fail later runs.
        new = {key: value for key, value in self._unsaved.items() if math.isfinite(value)}
        self._unsaved = {}
        if self.location is None or not new:
            return
        everything = self._read() | new  # another run may have written since
        keys = torch.frombuffer(bytearray(b"".join(everything)), dtype=torch.uint8).view(-1, 16)
        with self.store.file(self.location) as path:
            save_file({"keys": keys, "logps": torch.tensor(list(everything.values()))}, path)

    def _read(self) -> dict[bytes, float]:
        if self.location is None or not self.store.exists(self.location):
            return {}
        try:
            stored = load_file(self.store.resolve(self.location))
            keys = stored["keys"].numpy().tobytes()
            return {keys[16 * i : 16 * i + 16]: value for i, value in enumerate(stored["logps"].tolist())}
        except (OSError, KeyError, SafetensorError) as error:
            log.warning("%s cannot be read (%s): its log-probs are computed again.", self.location, error)
            return {}


def model_digest(ref: ModelRef) -> str | None:
    """Return a digest of the files of a model and its adapter; None for a hub name without a local folder."""
    try:
        folders = [local_folder(ref.base, "config.json")]
        folders += [local_folder(ref.adapter, ADAPTER_CONFIG)] if ref.adapter else []
    except OSError:
        return None
    digests = [_digest_of(folder, _state_of(folder)) for folder in folders]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:32]


def _state_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


@lru_cache(maxsize=64)
def _digest_of(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    """Return `digest_folder`, recomputed only if file times or sizes (`state`) changed: reading gigabytes is slow."""
    return digest_folder(folder)
