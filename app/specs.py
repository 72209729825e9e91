"""Frozen specifications of runs: all that decides a run's result, stored with it, read by the trainer.

A location is a path relative to the artifact store (`app.artifacts`) or an absolute one. What is stored is
complete, defaults written out, so a run can be repeated years later.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

RunKind = Literal["sample", "reward", "dpo", "ppo", "evaluate"]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRef(Spec):
    """A model: a base folder (or hub name), and the peft adapter folder on top of it, if any."""

    base: str
    adapter: str | None = None


class Generation(Spec):
    """How responses are sampled. No top-k or top-p: training assumes samples from the policy itself."""

    samples_per_prompt: int = Field(4, ge=1, le=64)
    max_new_tokens: int = Field(64, ge=1, le=8192)
    temperature: float = Field(1.0, gt=0, le=5)
    batch_size: int = Field(32, ge=1, le=4096, description="sequences generated together")


class Lora(Spec):
    """Low-rank adapters on every linear layer of the trunk (Hu et al. 2021). Dropout stays 0: see ALGORITHMS 5."""

    rank: int = Field(16, ge=1, le=512)
    alpha: int = Field(32, ge=1, le=1024)


class Optimiser(Spec):
    """AdamW with the learning rate going linearly to 0 after a warm-up."""

    learning_rate: float = Field(gt=0, le=1)
    epochs: int = Field(1, ge=1, le=100)
    batch_size: int = Field(8, ge=1, le=4096, description="rows (pairs or episodes) an optimiser step")
    microbatch_size: int = Field(8, ge=1, le=4096, description="rows forwarded together; gradients accumulate")
    microbatch_tokens: int = Field(1024, ge=1, description="tokens forwarded together, padding included: bounds memory")
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    eps: float = Field(1e-5, gt=0)


class SampleSpec(Spec):
    """Sample k responses for each prompt from each model."""

    kind: Literal["sample"] = "sample"
    model: ModelRef
    prompts: str = Field(description="location of a prompts JSONL: id, messages")
    generation: Generation = Generation()
    seed: int = 0


class RewardSpec(Spec):
    """Train a Bradley-Terry reward model on a snapshot's pairs."""

    kind: Literal["reward"] = "reward"
    backbone: ModelRef
    snapshot: str
    lora: Lora | None = Lora()
    optimiser: Optimiser = Optimiser(learning_rate=3e-4, epochs=2)
    max_length: int = Field(1024, ge=16)
    centering: float = Field(0.01, ge=0, description="weight of mean((r_c + r_r)^2)")
    soft_labels: bool = Field(True, description="targets are the labelers' consensus probabilities, not 0 or 1")
    seed: int = 0


class DPOSpec(Spec):
    """Direct preference optimisation (Rafailov et al. 2023) on a snapshot's pairs."""

    kind: Literal["dpo"] = "dpo"
    policy: ModelRef
    reference: ModelRef
    snapshot: str
    lora: Lora | None = Lora()
    optimiser: Optimiser = Optimiser(learning_rate=2e-4, epochs=2)
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    max_length: int = Field(1024, ge=16)
    seed: int = 0


class PPOSpec(Spec):
    """Proximal policy optimisation against a reward model with a KL leash (Ziegler et al. 2019; Ouyang et al. 2022)."""

    kind: Literal["ppo"] = "ppo"
    policy: ModelRef
    reference: ModelRef
    reward_model: str = Field(description="location of a sequence-classification folder with one label")
    prompts: str
    lora: Lora | None = Lora()
    optimiser: Optimiser = Optimiser(learning_rate=6e-4, epochs=2, batch_size=8, warmup_ratio=0.0)
    episodes: int = Field(192, ge=1, description="sampled responses in all")
    rollout_size: int = Field(32, ge=1, description="responses sampled before each round of updates")
    rollout_batch_size: int = Field(64, ge=1, le=4096, description="sequences generated together")
    max_new_tokens: int = Field(48, ge=1, le=8192)
    temperature: float = Field(1.0, gt=0, le=5)
    kl_coef: float = Field(0.05, ge=0, description="initial beta of the leash")
    kl_target: float | None = Field(6.0, gt=0, description="nats a sequence; none keeps kl_coef fixed")
    kl_horizon: int = Field(100, ge=1, description="episodes over which the controller adapts")
    kl_stop: float | None = Field(None, gt=0, description="stop when a rollout's KL exceeds this many nats a sequence")
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip_range: float = Field(0.2, gt=0)
    value_clip_range: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = Field(1.0, ge=0, description="subtracted from the score of unfinished answers")
    max_length: int = Field(1024, ge=16)
    seed: int = 0


class EvaluateSpec(Spec):
    """Score sampled responses with a reward model, and measure KL of the new policy to the reference, by slice."""

    kind: Literal["evaluate"] = "evaluate"
    policy: ModelRef
    reference: ModelRef
    reward_model: str
    prompts: str = Field(description="held-out and regression prompts")
    generation: Generation = Generation(samples_per_prompt=2)
    max_length: int = Field(1024, ge=16)
    seed: int = 0


RunSpec = Annotated[SampleSpec | RewardSpec | DPOSpec | PPOSpec | EvaluateSpec, Field(discriminator="kind")]
RUN_SPEC: TypeAdapter[RunSpec] = TypeAdapter(RunSpec)


class PromptRow(Spec):
    """A line of a prompts file."""

    id: int
    messages: tuple[dict[str, str], ...]
    slices: dict[str, str] = Field(default_factory=dict, description="domain, difficulty, safety_category, split")


class PairRow(Spec):
    """A line of a snapshot: one comparison as the trainer sees it.

    `preference` is the consensus strength in [-3, 3] towards B; `p_b` the consensus probability that B is better;
    `weight` how much the row counts in the loss.
    """

    comparison_id: int
    prompt_id: int
    messages: tuple[dict[str, str], ...]
    response_a: str
    response_b: str
    finished_a: bool = Field(True, description="False where the response was cut by length")
    finished_b: bool = True
    preference: float = Field(ge=-3, le=3)
    p_b: float = Field(ge=0, le=1)
    weight: float = Field(1.0, ge=0)
    judgments: tuple[int, ...] = Field(default=(), description="ids of the judgments behind it")
    rubric_version: int | None = None
    split: Literal["train", "heldout"]
    slices: dict[str, str] = Field(default_factory=dict)
