"""Code for both sides of a comparison with TRL: settings, a clock, and results."""

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel

from app.specs import Lora, ModelRef, Optimiser
from trainer.models.loading import load_causal_lm, lora_config, seed_everything

SEED = 0


class Work(BaseModel):
    """Settings of both sides: AdamW with linear decay of the learning rate to 0."""

    kind: str
    model: str
    lora: bool = False  # rank 16 on every linear layer of the trunk; else full weights
    precision: Literal["float32", "bfloat16"]
    learning_rate: float
    batch_size: int
    epochs: int = 1
    threads: int = 2
    cpu_time: bool = False  # measure CPU time of all threads, for machines with other load

    def now(self) -> float:
        return time.process_time() if self.cpu_time else time.perf_counter()

    @property
    def adapter(self) -> Lora | None:
        return Lora() if self.lora else None

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    @property
    def optimiser(self) -> Optimiser:
        return Optimiser(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            microbatch_size=64,
            warmup_ratio=0,
            precision=self.precision,
        )

    def peer_settings(self, folder: str, at_once: int) -> dict[str, Any]:
        """Return the same settings for a TRL trainer with `at_once` sequences or pairs per forward pass."""
        return {
            "output_dir": folder,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": self.batch_size // at_once,
            "num_train_epochs": 1,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "adam_epsilon": self.optimiser.eps,
            "max_grad_norm": self.optimiser.max_grad_norm,
            "optim": "adamw_torch_fused",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": self.precision == "bfloat16",
            "gradient_checkpointing": False,
            "use_cpu": not torch.cuda.is_available(),
            "seed": SEED,
        }

    def peer_adapter(self) -> dict[str, Any]:
        """Return the adapter arguments of a TRL trainer that loads the model itself."""
        return {"peft_config": lora_config(Lora())} if self.lora else {}

    @property
    def peer_dtype(self) -> str:
        """The dtype of TRL's weights. It matches ours: frozen weights have the compute dtype, trained ones are fp32."""
        return self.precision if self.lora else "float32"

    def copy_our_adapter(self, model: Any) -> None:
        """Copy our model's initial adapter, which is random, to TRL's model."""
        if not self.lora:
            return
        seed_everything(SEED)
        ours = load_causal_lm(ModelRef(base=self.model), self.adapter, trainable=True, dtype=self.dtype)
        drawn = {name: parameter for name, parameter in ours.named_parameters() if parameter.requires_grad}
        learns = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert drawn.keys() == learns.keys()
        with torch.no_grad():
            for name, parameter in learns.items():
                parameter.copy_(drawn[name])


class Clock:
    """A reporter that records the times of reports."""

    def __init__(self, job: Work) -> None:
        self.now = job.now
        self.steps: list[float] = []
        self.losses: list[float] = []
        self.phases: dict[str, list[float]] = {}

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        if slice:
            return
        if "loss" in values:
            self.steps.append(self.now())
            self.losses.append(values["loss"])
        elif "loss/policy_avg" in values:  # a rollout
            leash = values["objective/kl_coef"] * values.get("loss/kl_avg", 0.0)
            self.steps.append(self.now())
            self.losses.append(values["loss/policy_avg"] + leash)

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.phases.setdefault(message, []).append(self.now())

    def worked(self, tokens: int) -> None:
        """Do nothing: only steps are timed."""

    def samples(self, step: int, rows: Any) -> None:
        """Do nothing: sample pages are not needed."""


class Outcome(NamedTuple):
    step_seconds: list[float]
    reference_seconds: float
    losses: list[float]
