"""Training for all recipes: AdamW, linear decay of the learning rate, distributed batches, checkpoints.

A recipe's loop is the same on one process, on several (`accelerate launch`) and after a SIGKILL:

    training = Training(module, settings, rows, seed=..., checkpoints=...)
    for batch in training.batches(lengths):               # batches that are still to be trained on
        for part in training.parts(batch, lengths):       # one forward pass of this process
            loss = ... / total weight of the whole batch
            training.backward(loss, part)
        step = training.step(loss)                         # clips, checks, steps, returns norm and learning rate
        training.save_if_due()

All random numbers are derived from the seed and the place in the run, so a resumed run continues identically.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn

from app.errors import InvalidInput
from app.specs import Optimiser
from trainer.batching.data import length_batches
from trainer.batching.packing import token_parts
from trainer.checkpoints import Checkpoint, Checkpoints, random_states, set_random_states
from trainer.processes import accelerator, deal, generator_at, the_main_processes
from trainer.reporting import TrainingDiverged
from trainer.speed.gradient_checkpointing import recompute_activations
from trainer.speed.sharding import fill, outline, shard, shards_like, wants_shards, whole

Value = TypeVar("Value")

RECIPE = "recipe/"  # prefix of the tensors that a recipe adds to a checkpoint


class Part(NamedTuple):
    """The rows of one forward pass of one process.

    Attributes:
        rows: the rows' numbers.
        places: the rows' positions in their batch.
        counts: False for a repeated part that only keeps this process in step with the others; it must have no effect.
    """

    rows: list[int]
    places: list[int]
    counts: bool


class Step(NamedTuple):
    """Result of an optimiser step: the gradient's norm before clipping, and the learning rate."""

    grad_norm: float
    lr: float


def learning_rate(settings: Optimiser, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then linear decay to 0."""
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


class Training:
    """A module in training, with its optimiser and counters. It resumes from the newest checkpoint if there is one.

    Args:
        module: all modules to train. Call it only through `model`, because its `forward` may be wrapped.
        rows: number of rows in an epoch; None if the caller counts steps itself and gives `total_steps`.
        started: start of the run by `time.monotonic`; default: now.
        in_turns: each step trains only some of the parameters, the same ones on all processes.

    Attributes:
        model: the module, wrapped in DDP or FSDP if needed.
        steps: number of optimiser steps done.
        tokens: number of tokens trained on, as counted by the recipe.
        resumed: the checkpoint that this training resumed from; the recipe restores its own tensors and state from it.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Optimiser,
        rows: int | None = None,
        *,
        seed: int,
        total_steps: int | None = None,
        started: float | None = None,
        checkpoints: Checkpoints | None = None,
        in_turns: bool = False,
    ) -> None:
        self.settings, self.seed, self.checkpoints = settings, seed, checkpoints
        self.steps_an_epoch = -(-rows // settings.batch_size) if rows is not None else 0
        self.total_steps = settings.epochs * self.steps_an_epoch if total_steps is None else total_steps
        self.steps = self.tokens = 0
        self._started = time.monotonic() if started is None else started
        self.accelerator = accelerator()
        self.module = module
        self._outline: nn.Module | None = None
        if wants_shards() and self.accelerator.num_processes > 1:
            self._outline = outline(module)
            shard(module, self.accelerator.device, self.accelerator.num_processes)
            self.model = module
        else:
            self.accelerator.ddp_handler = (
                DistributedDataParallelKwargs(find_unused_parameters=True) if in_turns else None
            )
            self.model = self.accelerator.prepare(module)
        self.optimiser = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=settings.learning_rate,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.model.eval()  # new modules are in training mode, and dropout would make two forward passes differ
        if settings.gradient_checkpointing:
            recompute_activations(module)
        self.resumed = self._restore()

    @property
    def microbatch_tokens(self) -> int:
        """Maximum tokens per forward pass; unlimited if the settings have None (`trainer.models.sizes` fills it in)."""
        return self.settings.microbatch_tokens or sys.maxsize

    @property
    def seconds(self) -> float:
        """Duration of the run, including earlier attempts up to their last checkpoint."""
        return time.monotonic() - self._started

    # ---- batches -----------------------------------------------------------------------------------------------------

    @property
    def epoch_ends(self) -> bool:
        """Whether the step just done was the last of an epoch."""
        return self.steps % self.steps_an_epoch == 0

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows of each remaining optimiser step, of similar length; every epoch has a different order."""
        for epoch in range(self.steps // self.steps_an_epoch, self.settings.epochs):
            order = length_batches(lengths, self.settings.batch_size, self.generator(epoch))
            for number, batch in enumerate(order):
                if epoch * self.steps_an_epoch + number >= self.steps:
                    yield batch

    def generator(self, *place: int) -> torch.Generator:
        """Return a random generator that depends only on the seed and a place in the run."""
        return generator_at(self.seed, *place)

    def parts(self, batch: Sequence[int], lengths: Sequence[int]) -> Iterator[Part]:
        """Yield this process's parts of a batch. Gradients are exchanged only in the last part."""
        processes = self.accelerator.num_processes
        rows = min(self.settings.microbatch_size, -(-len(batch) // processes))
        places = {row: place for place, row in enumerate(batch)}
        mine = list(deal(token_parts(batch, lengths, rows, self.microbatch_tokens)))
        for number, (part, counts) in enumerate(mine):
            # With shards, exchange gradients in every part: otherwise every process would hold full gradients.
            now = number == len(mine) - 1 or self._outline is not None
            with nullcontext() if now else self.accelerator.no_sync(self.model):
                yield Part(part, [places[row] for row in part], counts)

    def backward(self, loss: Tensor, part: Part) -> None:
        """Add the gradients of a part's share of the batch's loss; gradients of all parts and processes are summed."""
        # The exchange averages over processes; multiply by their number to get the sum.
        self.accelerator.backward(loss * (self.accelerator.num_processes if part.counts else 0))

    def step(self, loss: float) -> Step:
        """Take one step with the accumulated gradients and clear them. `loss` is the loss of these gradients.

        Raises:
            TrainingDiverged: the loss or the gradient's norm is NaN or infinite; parameters are unchanged.
        """
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        grad_norm = float(whole(norm)) if norm is not None else 0.0
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingDiverged(
                f"The loss became {loss} and the gradient norm {grad_norm} at step {self.steps + 1}.",
                "Nothing was saved of it; the last checkpoint is kept. Lower the learning rate and start again.",
            )
        lr = learning_rate(self.settings, self.steps, self.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        return Step(grad_norm, lr)

    def weights(self) -> dict[str, Tensor]:
        """Copy all trained parameters to the CPU. All processes must call this."""
        return {name: whole(parameter.detach()).cpu().clone() for name, parameter in self._trained()}

    @torch.no_grad()
    def put_back(self, weights: Mapping[str, Tensor]) -> None:
        """Restore the parameters that `weights` returned before."""
        for name, parameter in self._trained():
            parameter.copy_(shards_like(weights[name], parameter))

    def whole_module(self) -> Any:
        """Return the module with all its weights on every process, for measuring and saving after training.

        Without shards it is the module itself. With shards it is a copy, so changes to it do not affect `model`.
        """
        if self._outline is None:
            return self.module
        fill(self._outline, self.module)
        return self._outline.eval()

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def save_if_due(self, state: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write a checkpoint if the last one is old enough; `state` (JSON) and `tensors` belong to the recipe.

        Raises:
            StorageFull: the disk has no room; earlier checkpoints stay.
        """
        due = self.checkpoints is not None and self.checkpoints.due()
        if not (due if self._outline is None else the_main_processes(lambda: due)):
            return
        writes = self.checkpoints is not None and self.accelerator.is_main_process
        if self._outline is None and not writes:
            return
        own: dict[str, Tensor] = {}
        for name, tensor in self._own_tensors():
            gathered = whole(tensor.detach())  # all processes gather one tensor at a time
            if writes:
                own[name] = gathered.cpu()
        if self.checkpoints is not None and writes:
            added = {RECIPE + name: tensor for name, tensor in (tensors or {}).items()}
            counters = {"tokens": self.tokens, "seconds": self.seconds, "recipe": dict(state or {})}
            self.checkpoints.save(self.steps, {**own, **random_states(), **added}, counters)

    def _own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"weights/{name}", parameter) for name, parameter in self._trained())
        for number, parameter in enumerate(self._optimised()):
            for key, value in self.optimiser.state.get(parameter, {}).items():
                yield f"adam/{number}/{key}", torch.as_tensor(value)

    def _restore(self) -> Checkpoint | None:
        found = self.checkpoints.load() if self.checkpoints is not None else None
        if self.accelerator.num_processes > 1 and len(set(gather_object([found and found.step]))) > 1:
            raise InvalidInput(
                "The processes do not find the same checkpoint to go on from.",
                "Keep the checkpoints on a file system that all machines see, or start again without them.",
            )
        if found is None:
            return None
        self.put_back({name: found.tensors[f"weights/{name}"] for name, _ in self._trained()})
        for number, parameter in enumerate(self._optimised()):
            prefix = f"adam/{number}/"
            kept = {key.removeprefix(prefix): value for key, value in found.tensors.items() if key.startswith(prefix)}
            if kept:
                # Copy, because a loaded tensor may be a view of the file.
                self.optimiser.state[parameter] = {k: shards_like(v.clone(), parameter) for k, v in kept.items()}
        set_random_states(found.tensors)
        self.steps, self.tokens = found.step, found.state["tokens"]
        self._started -= found.state["seconds"]
        own = {name.removeprefix(RECIPE): t for name, t in found.tensors.items() if name.startswith(RECIPE)}
        return Checkpoint(found.step, own, found.state["recipe"])

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def _optimised(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
