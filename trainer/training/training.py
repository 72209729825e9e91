"""What all recipes that train share: AdamW, a rate that goes linearly to 0, batches dealt to processes, checkpoints.

A recipe's loop stays visible and reads the same on one process, on several (`accelerate launch`) and after a SIGKILL:

    training = Training(module, settings, rows, seed=..., checkpoints=...)
    for batch in training.batches(lengths):               # those not yet trained on
        for part in training.parts(batch, lengths):       # this process's share, forwarded at once
            loss = ... / total weight of the whole batch
            training.backward(loss, part)
        step = training.step(loss)                         # clips, checks, steps, says norm and rate
        training.save_if_due()

Everything random is derived from the seed and the place in the run, so that going on from a checkpoint is going on.
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
    """Rows that one process forwards at once.

    Attributes:
        rows: the rows.
        places: where they stand in the batch they are part of.
        counts: False for a repeat that only keeps this process in step with the others; it must change nothing.
    """

    rows: list[int]
    places: list[int]
    counts: bool


class Step(NamedTuple):
    """What an optimiser step did: the gradient's norm before clipping, and the learning rate that was used."""

    grad_norm: float
    lr: float


def learning_rate(settings: Optimiser, step: int, total_steps: int) -> float:
    """The rate of a step, counted from 0: up over the warm-up, then linearly to 0."""
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


class Training:
    """A module being trained, its optimiser, and how far it is. Goes on from the newest checkpoint, if there is one.

    Args:
        module: all that is trained, run through its `forward` only: `model` below is what to call.
        rows: how many rows an epoch has; None where the caller counts steps itself and gives `total_steps`.
        started: when the run began, of `time.monotonic`; default: now.
        in_turns: each step trains some of the parameters only, the same on all processes; the others stay as they are.

    Attributes:
        model: the module as devices and processes need it (DDP or FSDP around it, or itself).
        steps: optimiser steps done.
        tokens: tokens trained on, as the recipe counts them.
        resumed: the checkpoint this went on from; its recipe's tensors and state are the recipe's to restore.
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
        self.model.eval()  # a new module says it is in training: dropout would make two passes of one model differ
        if settings.gradient_checkpointing:
            recompute_activations(module)
        self.resumed = self._restore()

    @property
    def microbatch_tokens(self) -> int:
        """Tokens forwarded at once; no limit where the settings name none (`trainer.models.sizes` fills them in)."""
        return self.settings.microbatch_tokens or sys.maxsize

    @property
    def seconds(self) -> float:
        """How long the run has taken, with earlier attempts up to their last checkpoint."""
        return time.monotonic() - self._started

    # ---- batches -----------------------------------------------------------------------------------------------------

    @property
    def epoch_ends(self) -> bool:
        """Whether the step just done was the last of an epoch."""
        return self.steps % self.steps_an_epoch == 0

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of each optimiser step that is still to be done, of similar length; every epoch in another order."""
        for epoch in range(self.steps // self.steps_an_epoch, self.settings.epochs):
            order = length_batches(lengths, self.settings.batch_size, self.generator(epoch))
            for number, batch in enumerate(order):
                if epoch * self.steps_an_epoch + number >= self.steps:
                    yield batch

    def generator(self, *place: int) -> torch.Generator:
        """A random generator that depends on the seed and a place in the run only."""
        return generator_at(self.seed, *place)

    def parts(self, batch: Sequence[int], lengths: Sequence[int]) -> Iterator[Part]:
        """This process's parts of a batch. Gradients are exchanged in the last one only."""
        processes = self.accelerator.num_processes
        rows = min(self.settings.microbatch_size, -(-len(batch) // processes))
        places = {row: place for place, row in enumerate(batch)}
        mine = list(deal(token_parts(batch, lengths, rows, self.microbatch_tokens)))
        for number, (part, counts) in enumerate(mine):
            # Shards exchange theirs every time: kept until the last part, gradients would be whole on every process.
            now = number == len(mine) - 1 or self._outline is not None
            with nullcontext() if now else self.accelerator.no_sync(self.model):
                yield Part(part, [places[row] for row in part], counts)

    def backward(self, loss: Tensor, part: Part) -> None:
        """Adds the gradients of a part's share of the batch's loss: the shares of all parts of all processes add up."""
        # The average over processes is what is exchanged, the sum is what is wanted.
        self.accelerator.backward(loss * (self.accelerator.num_processes if part.counts else 0))

    def step(self, loss: float) -> Step:
        """One step with the gradients accumulated so far, which are cleared. `loss` is what they are gradients of.

        Raises:
            TrainingDiverged: the loss or the gradient's norm is NaN or infinite; no parameter has been changed by it.
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
        """A copy of all that is trained, as it is now, on the CPU. All processes must ask for it."""
        return {name: whole(parameter.detach()).cpu().clone() for name, parameter in self._trained()}

    @torch.no_grad()
    def put_back(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights that `weights` returned before."""
        for name, parameter in self._trained():
            parameter.copy_(shards_like(weights[name], parameter))

    def whole_module(self) -> Any:
        """The module with all its weights on every process: what is measured further and saved once training is over.

        Without shards the module itself; with them a copy, so what is done to it does not reach `model`.
        """
        if self._outline is None:
            return self.module
        fill(self._outline, self.module)
        return self._outline.eval()

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def save_if_due(self, state: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Writes a checkpoint if the last one is long enough ago; `state` (JSON) and `tensors` are the recipe's own.

        Raises:
            StorageFull: no room; earlier checkpoints stay.
        """
        due = self.checkpoints is not None and self.checkpoints.due()
        if not (due if self._outline is None else the_main_processes(lambda: due)):
            return
        writes = self.checkpoints is not None and self.accelerator.is_main_process
        if self._outline is None and not writes:
            return
        own: dict[str, Tensor] = {}
        for name, tensor in self._own_tensors():
            gathered = whole(tensor.detach())  # by all processes together, one at a time
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
                # A copy: what was loaded may be a view of the file.
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
