"""Cross-fitting of a reward model over prompts: each member trains on all folds but one and is evaluated on that fold.

With few comparisons, holding out a third of them costs more accuracy than the evaluation is worth. Instead the training
comparisons are split by prompt into k folds, and member i trains on all but fold i. Its predictions for fold i are as
good as predictions for held-out data (cross-fitting, Chernozhukov et al. 2018). The deployed score is the mean of the
members. They disagree more than several heads on one trunk do, so their spread indicates responses that no comparison
covers (Coste et al. 2023).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.specs import RewardSpec
from trainer.batching.data import MIN_PAIRS, Pair, length_batches
from trainer.checkpoints import Checkpoint
from trainer.processes import generator_at
from trainer.reward.objective import Element

LEAST = 10  # batch elements (comparisons or rankings) per fold: with fewer, one member's accuracy means little
FOLDS = 1_000_003  # place for `generator_at` that no epoch number reaches


class Folds(NamedTuple):
    """The fold of each batch element. A single member has no folds and trains on all elements.

    Attributes:
        of: the fold of each element; empty for a single member.
        members: number of members, one per fold.
    """

    of: tuple[int, ...]
    members: int

    def trained(self, member: int, elements: int) -> list[int]:
        """Return which of the elements 0 to `elements` - 1 a member trains on."""
        return [i for i in range(elements) if not self.of or self.of[i] != member]

    def held(self, member: int) -> list[int]:
        """Return the elements of a member's fold, on which it does not train."""
        return [i for i, fold in enumerate(self.of) if fold == member]


def folds_of(spec: RewardSpec, pairs: Sequence[Pair], elements: Sequence[Element]) -> tuple[Folds, tuple[str, ...]]:
    """Split the training elements into folds by prompt; also return a note if there are fewer folds than requested.

    Each fold holds at least 10 elements, and every member trains on at least 20 comparisons with a winner: 40
    comparisons are enough for 4 folds, 30 for 3.
    """
    alone = Folds((), 1)
    if not spec.folds:
        return alone, ()
    if spec.trunk == "trained" and spec.lora is None:
        return alone, ("No cross-fitting: it needs adapters, but all weights are trained.",)
    prompts = [str(pairs[element.pairs[0]].row.messages) for element in elements]
    times = Counter(prompts)
    known = list(times)
    order = torch.randperm(len(known), generator=generator_at(spec.seed, FOLDS)).tolist()
    for k in range(min(spec.folds, len(elements) // LEAST, len(known)), 1, -1):
        sizes, fold_of = [0] * k, {}
        for i in order:
            fold_of[known[i]] = sizes.index(min(sizes))
            sizes[fold_of[known[i]]] += times[known[i]]
        folds = Folds(tuple(fold_of[prompt] for prompt in prompts), k)
        decided = [
            sum(not pairs[i].tied for number in folds.trained(member, len(elements)) for i in elements[number].pairs)
            for member in range(k)
        ]
        if min(decided) >= MIN_PAIRS:
            fewer = f"Cross-fitting uses {k} folds instead of {spec.folds}: there are too few comparisons for more."
            return folds, () if k == spec.folds else (fewer,)
    return alone, (
        f"No cross-fitting: it needs about {3 * LEAST} training comparisons of several prompts; there are "
        f"{len(elements)} of {len(known)}. Accuracy is of held-out comparisons only.",
    )


def schedule(spec: RewardSpec, folds: Folds, lengths: Sequence[int]) -> list[list[tuple[int, list[int]]]]:
    """Return the optimiser steps (member, elements of its batch) of each epoch; members take turns."""
    epochs = []
    for epoch in range(spec.optimiser.epochs):
        orders = []
        for member in range(folds.members):
            rows = folds.trained(member, len(lengths))
            generator = generator_at(spec.seed, epoch, *([member] if folds.of else []))
            order = length_batches([lengths[i] for i in rows], spec.optimiser.batch_size, generator)
            orders.append([(member, [rows[i] for i in batch]) for batch in order])
        turns = itertools.zip_longest(*orders)
        epochs.append([step for turn in turns for step in turn if step is not None])
    return epochs


class Best(NamedTuple):
    """The best epoch so far, by its loss on unseen comparisons.

    Attributes:
        losses: the loss of each epoch so far; empty if none was measured.
        weights: all trained weights after the epoch with the lowest loss.
    """

    losses: tuple[float, ...]
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, resumed: Checkpoint | None) -> "Best":
        """Restore the best epoch from a checkpoint; an empty one without a checkpoint."""
        return cls((), {}) if resumed is None else cls(tuple(resumed.state["losses"]), resumed.tensors)

    @property
    def state(self) -> dict[str, Any]:
        return {"losses": self.losses}

    @property
    def kept(self) -> int:
        """Number of the best epoch, counted from 1; the first if losses are equal; 0 if none was measured."""
        return self.losses.index(min(self.losses)) + 1 if self.losses else 0

    def after(self, loss: float, weights: Callable[[], dict[str, Tensor]]) -> "Best":
        """Return the best epoch after one more epoch; `weights` is called only if that epoch is the best so far."""
        is_best = not self.losses or loss < min(self.losses)
        return Best((*self.losses, loss), weights() if is_best else self.weights)

    def figures(self) -> list[dict[str, Any]]:
        """Return the report's rows, one per epoch."""
        return [
            {"epoch": number, "loss": loss, "kept": number == self.kept}
            for number, loss in enumerate(self.losses, start=1)
        ]
