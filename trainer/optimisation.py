"""The optimiser all recipes share: AdamW, a learning rate that goes linearly to 0, clipped gradients, no NaN saved."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from app.specs import Optimiser
from trainer.reporting import TrainingDiverged


class Step(NamedTuple):
    """What an optimiser step did: the gradient's norm before clipping, and the learning rate that was used."""

    grad_norm: float
    lr: float


class Stepper:
    """Steps the trainable parameters `total_steps` times, then the learning rate is 0."""

    def __init__(self, parameters: Sequence[nn.Parameter], spec: Optimiser, total_steps: int) -> None:
        self.parameters, self.max_grad_norm, self.steps = list(parameters), spec.max_grad_norm, 0
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=spec.learning_rate, eps=spec.eps, weight_decay=spec.weight_decay
        )
        warmup = round(spec.warmup_ratio * total_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)

    def step(self, loss: float) -> Step:
        """One step with the gradients accumulated so far, which are cleared. `loss` is what they are gradients of.

        Raises:
            TrainingDiverged: the loss or the gradient's norm is NaN or infinite; no parameter has been changed by it.
        """
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingDiverged(
                f"The loss became {loss} and the gradient norm {grad_norm} at step {self.steps + 1}.",
                "Nothing was saved. Lower the learning rate and start again.",
            )
        lr = float(self.schedule.get_last_lr()[0])
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        return Step(grad_norm, lr)
