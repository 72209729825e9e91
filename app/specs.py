"""Frozen specifications of runs: all that decides a run's result, stored with it, read by the trainer.

A location is a path relative to the artifact store (`app.artifacts`) or an absolute one. What is stored is
complete, defaults written out, so a run can be repeated years later.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

RunKind = Literal[
    "freeze",
    "sample",
    "sft",
    "reward",
    "dpo",
    "on_policy_dpo",
    "best_of_n",
    "ppo",
    "rloo",
    "grpo",
    "evaluate",
    "judge",
    "revise",
]
EnsembleScore = Literal["mean", "min", "mean_minus_variance"]
Precision = Literal["auto", "float32", "bfloat16"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
MonitorsMode = Literal["off", "note", "stop"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a row in the loss


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
    batch_size: int | None = Field(
        None, ge=1, le=4096, description="sequences generated together; none: by device and memory"
    )
    precision: Precision = Field("auto", description="of sampling; auto: float32 on CPUs, measured on accelerators")


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
    microbatch_tokens: int | None = Field(
        None, ge=1, description="tokens forwarded together: bounds memory; none: by device and memory"
    )
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    eps: float = Field(1e-5, gt=0)
    gradient_checkpointing: bool = Field(False, description="compute activations twice to hold fewer: slower, smaller")
    precision: Precision = Field("auto", description="of frozen weights and matrix products; auto measures")


class Server(Spec):
    """An OpenAI-compatible server (vLLM and others) that samples instead of this process. Its key is a setting."""

    url: str = Field(description="up to and including /v1")
    model: str = Field(description="the name under which it serves the model that is sampled")
    timeout_seconds: float = Field(120, gt=0)
    retries: int = Field(4, ge=0, le=20)
    concurrency: int = Field(32, ge=1, le=1024, description="requests under way at once")


class FreezeSpec(Spec):
    """Write the snapshots that a round reads. Which rows those are is said by the round's settings."""

    kind: Literal["freeze"] = "freeze"


class SampleSpec(Spec):
    """Sample k responses for each prompt from each model; sample j of model m has the index m * k + j."""

    kind: Literal["sample"] = "sample"
    models: tuple[ModelRef, ...] = Field(min_length=1)
    heldout_models: int = Field(0, ge=0, description="of so many models, the last ones, only for held-out prompts")
    servers: tuple[Server | None, ...] = Field((), description="one a model; none, or no entry: sample here")
    prompts: str = Field(description="location of a prompts JSONL: id, messages")
    generation: Generation = Generation()
    reward_models: tuple[str, ...] = Field((), description="score every sample, for choosing which pairs to ask about")
    max_length: int = Field(1024, ge=16, description="tokens that the reward models read")
    seed: Seed = 0


class SFTSpec(Spec):
    """Supervised fine-tuning on demonstrations: the loss is on the tokens of the answers only."""

    kind: Literal["sft"] = "sft"
    policy: ModelRef
    demonstrations: str = Field(description="location of a demonstrations JSONL: see DemonstrationRow")
    lora: Lora | None = Lora()
    optimiser: Optimiser = Optimiser(learning_rate=2e-4, epochs=2)
    packing: bool = Field(True, description="several demonstrations stand in one row; none sees another")
    max_length: int = Field(1024, ge=16)
    seed: Seed = 0


class RewardSpec(Spec):
    """Train a Bradley-Terry reward model on a snapshot's pairs.

    Heads: `reward`, or `reward/0` ... for an ensemble, and one for each aspect; all read the same trunk. With `folds`
    each of so many members has heads of its own.

    With a frozen trunk only the heads are learned: each is fitted exactly to what the base model's layers say of a
    response. With a trained one every member also has an adapter, and the epoch that does best on comparisons that its
    members did not train on is kept.
    """

    kind: Literal["reward"] = "reward"
    backbone: ModelRef
    snapshot: str
    # On 300 comparisons a policy that learned from heads alone won more than one that learned from adapters, at a sixth
    # of the passes (docs/learning.md).
    trunk: Literal["frozen", "trained"] = Field(
        "frozen", description="frozen: heads are fitted to its layers; trained: adapters, or all weights, learn too"
    )
    ridge: float = Field(0.3, gt=0, description="of a frozen trunk: how strongly the heads are kept small")
    doubt: float = Field(
        1.0, ge=0, description="of a frozen trunk: what a response unlike the compared ones loses for each deviation"
    )
    lora: Lora | None = Field(Lora(), description="of a trained trunk; none: all weights are trained")
    folds: int = Field(
        5, ge=0, le=16, description="members, each trained without one fold of the prompts; 0 or 1: one, on everything"
    )
    # Only a trained trunk reads it. With 90 comparisons, 1e-3 ordered 74% of unseen comparisons correctly, 3e-4 60%.
    optimiser: Optimiser = Optimiser(learning_rate=1e-3, epochs=2)
    max_length: int = Field(1024, ge=16)
    centering: float = Field(0.01, ge=0, description="weight of mean((r_c + r_r)^2)")
    soft_labels: bool = Field(True, description="targets are the labelers' consensus probabilities, not 0 or 1")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    margin: Literal["none", "small", "large"] = Field("none", description="what d must exceed, by strength (Llama 2)")
    ties: Literal["half", "rao_kupper", "davidson"] = Field(
        "half", description="a tie is half a win each way, or an outcome of its own with a learned parameter"
    )
    ensemble: int = Field(
        1, ge=1, le=16, description="heads on the trunk, each with its own init and bootstrap weights"
    )
    aspects: tuple[str, ...] = Field((), description="aspects rated apart that get a head of their own")
    seed: Seed = 0


PreferenceLoss = Literal["dpo", "robust", "ipo", "hinge", "kto", "orpo", "simpo"]

# Settings of DPOSpec that only these losses read.
READ_BY: dict[str, tuple[PreferenceLoss, ...]] = {
    "label_smoothing": ("dpo", "robust"),
    "soft_labels": ("dpo",),
    "length_average": ("ipo",),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "thumbs": ("kto",),
}


class LossDefaults(NamedTuple):
    """What a loss of DPO's family begins with where a spec does not say: see `LOSS_DEFAULTS`."""

    beta: float
    learning_rate: float  # of adapters; full weights want about a tenth


# Betas are the papers'. SimPO's is the lowest of Meng et al. 2024: large, because its margin is a log-prob a token.
# DPO's rate was measured (docs/training.md). The papers and TRL give the other losses rates like DPO's.
LOSS_DEFAULTS: dict[PreferenceLoss, LossDefaults] = {
    "dpo": LossDefaults(0.1, 6e-4),
    "robust": LossDefaults(0.1, 6e-4),
    "ipo": LossDefaults(0.1, 6e-4),
    "hinge": LossDefaults(0.1, 6e-4),
    "kto": LossDefaults(0.1, 6e-4),
    "orpo": LossDefaults(0.1, 6e-4),
    "simpo": LossDefaults(2.0, 6e-4),
}


class DPOSpec(Spec):
    """Preference optimisation without sampling on a snapshot's pairs: DPO (Rafailov et al. 2023) and its family.

    `dpo` with `label_smoothing` is conservative DPO; `robust` takes it as the rate of flipped labels. ORPO and SimPO
    have no reference; KTO also learns from `thumbs`, single responses that were liked or not. Rate and beta that are
    not given are those of the loss.
    """

    kind: Literal["dpo"] = "dpo"
    policy: ModelRef
    reference: ModelRef
    snapshot: str
    lora: Lora | None = Lora()
    loss: PreferenceLoss = "dpo"
    optimiser: Optimiser = Field(
        default_factory=lambda given: Optimiser(learning_rate=LOSS_DEFAULTS[given["loss"]].learning_rate, epochs=2)
    )
    beta: float = Field(
        default_factory=lambda given: LOSS_DEFAULTS[given["loss"]].beta,
        gt=0,
        description="strength of the leash; tau of IPO, lambda of ORPO; SimPO's scale of the log-prob a token",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    soft_labels: bool = Field(False, description="dpo: targets are the labelers' consensus probabilities, not 0 or 1")
    length_average: bool = Field(False, description="IPO: log-ratios a token instead of their sum")
    gamma: float = Field(1.0, ge=0, description="SimPO: the margin, in units of beta times log-prob a token")
    desirable_weight: float = Field(1.0, ge=0, description="KTO")
    undesirable_weight: float = Field(1.0, ge=0, description="KTO")
    thumbs: str | None = Field(None, description="KTO: location of a thumbs JSONL: see ThumbRow")
    nll_weight: float = Field(0.0, ge=0, description="weight of the chosen responses' NLL a token (RPO)")
    max_length: int = Field(1024, ge=16)
    seed: Seed = 0

    @field_validator(*READ_BY)
    @classmethod
    def _its_loss_reads_it(cls, value: Any, info: ValidationInfo) -> Any:
        return check_read(info.field_name or "", value, info.data.get("loss"))


def check_read(name: str, value: Any, loss: PreferenceLoss | None) -> Any:
    """The value of a setting in READ_BY.

    Raises:
        PydanticCustomError: it was set, but for another loss, with which it would do nothing.
    """
    if loss and loss not in READ_BY[name] and value != DPOSpec.model_fields[name].default:
        readers = " and ".join(READ_BY[name])
        raise PydanticCustomError("not_read", f"Loss {loss} does not use it, only {readers}: leave it at its default")
    return value


class RolloutSpec(Spec):
    """Settings of the methods that learn from rollouts by policy gradients: PPO, RLOO and GRPO.

    A rollout is a set of answers that the policy samples and reward models score. Several updates follow each rollout.
    """

    policy: ModelRef
    reference: ModelRef = Field(description="the model that KL is measured to")
    reward_models: tuple[str, ...] = Field(min_length=1, description="locations of reward models: several, an ensemble")
    ensemble_score: EnsembleScore = Field(
        "mean", description="how the heads of all reward models make one score (Coste et al. 2023)"
    )
    variance_weight: float = Field(0.1, ge=0, description="lambda of mean_minus_variance")
    prompts: str = Field(description="location of a prompts JSONL: what the policy is sampled on")
    lora: Lora | None = Lora()
    # For LoRA in short runs: in 24 updates of a 135M model 3e-4 moved nothing, 1.2e-3 went too far (approxkl 0.29).
    optimiser: Optimiser = Optimiser(learning_rate=6e-4, epochs=2, batch_size=8, warmup_ratio=0.0)
    episodes: int = Field(192, ge=1, description="sampled responses in all")
    rollout_size: int = Field(32, ge=1, description="responses sampled before each round of updates")
    samples_per_prompt: int = Field(1, ge=1, le=64, description="of those, how many answer one prompt, read once")
    rollout_batch_size: int | None = Field(
        None, ge=1, le=4096, description="sequences generated together; none: by device and memory"
    )
    max_new_tokens: int = Field(48, ge=1, le=8192)
    temperature: float = Field(1.0, gt=0, le=5)
    kl_coef: float = Field(0.05, ge=0, description="initial beta of the leash; 0 stays 0, whatever the target")
    kl_target: float | None = Field(6.0, gt=0, description="nats a sequence; none keeps kl_coef fixed")
    kl_horizon: int = Field(
        100, ge=1, description="episodes over which the controller adapts; a larger rollout counts as that many"
    )
    kl_stop: float | None = Field(None, gt=0, description="stop when a rollout's KL exceeds this many nats a sequence")
    approxkl_stop: float | None = Field(
        None, gt=0, description="end a rollout's updates once policy/approxkl exceeds it"
    )
    length_weight: float = Field(
        0.0, ge=0, description="taken from a score for each standard deviation of length: length-controlled reward"
    )
    normalise_scores: bool = Field(False, description="divide scores by their running standard deviation")
    clip_score: float | None = Field(None, gt=0, description="scores are clipped to +- this, after normalisation")
    missing_eos: Literal["subtract", "replace"] = "subtract"
    missing_eos_penalty: float | None = Field(
        1.0, ge=0, description="taken from the score of unfinished answers, or what replaces it, negated"
    )
    ptx: str | None = Field(None, description="location of demonstrations whose NLL is mixed into every step")
    ptx_coef: float = Field(0.1, ge=0)
    evaluate_every: int = Field(2, ge=1, description="rollouts between sample pages")
    monitors: MonitorsMode = Field(
        "note",
        description="of reward hacking, while it trains; note: alarms are recorded; stop: an alarm also ends the run, "
        "which keeps the last policy that gave no sign, and no round starts by itself after it",
    )
    max_length: int = Field(1024, ge=16)
    seed: Seed = 0


class PPOSpec(RolloutSpec):
    """Proximal policy optimisation against a reward model with a KL leash (Ziegler et al. 2019; Ouyang et al. 2022)."""

    kind: Literal["ppo"] = "ppo"
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(
        1.0, ge=0, le=1, description="below 1 the critic is fitted to the first rollout before the policy learns"
    )
    clip_range: float = Field(0.2, gt=0)
    value_clip_range: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    critic: Literal["policy", "reward"] = Field(
        "policy",
        description="a zero value head on the policy's trunk, or a model of its own that begins as the reward's",
    )
    whiten_rewards: bool = False


class GroupSpec(RolloutSpec):
    """Settings of the methods that compare several answers to one prompt and need no critic.

    `episodes`, `rollout_size` and `optimiser.batch_size` are rounded up to whole groups.
    """

    ensemble_score: EnsembleScore = Field(
        "mean_minus_variance", description="how all members of the reward models make one score (Coste et al. 2023)"
    )
    variance_weight: float = Field(1.0, ge=0, description="lambda of mean_minus_variance")
    optimiser: Optimiser = Optimiser(learning_rate=6e-4, epochs=2, batch_size=32, warmup_ratio=0.0)
    episodes: int = Field(512, ge=1, description="sampled responses in all")
    rollout_size: int = Field(64, ge=1, description="responses sampled before each round of updates")
    samples_per_prompt: int = Field(8, ge=2, le=64, description="answers in a group: to one prompt, read once")
    clip_low: float = Field(0.2, gt=0, lt=1, description="the ratio counts down to 1 minus this")
    clip_high: float = Field(0.28, gt=0, description="the ratio counts up to 1 plus this (DAPO, Yu et al. 2025)")
    normalisation: Literal["constant", "published"] = Field(
        "constant",
        description="constant: no bias by length or deviation (Liu et al. 2025); published: as first given",
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward", description="the leash: k1 taken from the reward, or k3 added to the loss"
    )


class RLOOSpec(GroupSpec):
    """REINFORCE with a leave-one-out baseline: the mean reward of the prompt's other answers (Ahmadian et al. 2024).

    `published` takes a whole answer as one action, with one ratio; `constant` has a ratio for each token.
    """

    kind: Literal["rloo"] = "rloo"


class GRPOSpec(GroupSpec):
    """Group relative policy optimisation: the baseline is the mean reward of the prompt's answers (Shao et al. 2024).

    `published` divides by their standard deviation and takes a mean over each answer's tokens; `constant` is Dr. GRPO.
    """

    kind: Literal["grpo"] = "grpo"


class TurnsSpec(Spec):
    """Settings of the methods that work in turns: sample the policy, score the answers, train on the best of them.

    Every turn samples the policy that the turn before it trained. Prompts need no judgment to take part. KL is measured
    to the policy that the run begins with: the reward model has seen answers like that policy's, and knows little of
    others.
    """

    policy: ModelRef
    reward_models: tuple[str, ...] = Field(min_length=1, description="locations of reward models: several, an ensemble")
    ensemble_score: EnsembleScore = Field(
        "mean_minus_variance", description="how all members of the reward models make one score (Coste et al. 2023)"
    )
    variance_weight: float = Field(1.0, ge=0, description="lambda of mean_minus_variance")
    length_weight: float = Field(
        0.0, ge=0, description="taken from a score for each standard deviation of length: a length-controlled reward"
    )
    missing_eos_penalty: float = Field(
        1.0, ge=0, description="taken from the score of answers cut by length, which are never chosen either"
    )
    prompts: str = Field(description="location of a prompts JSONL: what the policy is sampled on")
    lora: Lora | None = Lora()
    turns: int = Field(1, ge=0, le=100, description="how often the policy is sampled and trained")
    prompts_per_turn: int = Field(128, ge=1, description="prompts that a turn samples, drawn at random")
    samples_per_prompt: int = Field(16, ge=2, le=256, description="answers a prompt in each turn")
    monitors: MonitorsMode = Field(
        "note",
        description="of reward hacking, while it trains; note: alarms are recorded; stop: an alarm also ends the run, "
        "which keeps the last policy that gave no sign, and no round starts by itself after it",
    )
    kl_budget: float | None = Field(
        24.0, gt=0, description="most nats a response between the policy at the start and at the end; none: no limit"
    )
    rollout_batch_size: int | None = Field(
        None, ge=1, le=4096, description="sequences generated together; none: by device and memory"
    )
    max_new_tokens: int = Field(64, ge=1, le=8192)
    temperature: float = Field(1.0, gt=0, le=5)
    max_length: int = Field(1024, ge=16)
    seed: Seed = 0


class OnPolicyDPOSpec(TurnsSpec):
    """DPO on people's comparisons, then in turns on pairs of the policy's own answers that the reward model chose.

    Each turn's reference is the policy it begins with.
    """

    kind: Literal["on_policy_dpo"] = "on_policy_dpo"
    snapshot: str = Field(description="location of the people's comparisons")
    optimiser: Optimiser = Optimiser(learning_rate=2e-4, epochs=1)
    human_learning_rate: float = Field(6e-4, gt=0, le=1, description="of DPO on people's comparisons, before the turns")
    human_epochs: int = Field(2, ge=0, le=100, description="over people's comparisons before the turns; 0: none")
    human_share: float = Field(0.5, ge=0, lt=1, description="share of people's comparisons among each turn's pairs")
    pairs_per_prompt: int = Field(4, ge=1, le=128, description="the best against the worst, the second best, ...")
    min_margin: float = Field(
        0.5, ge=0, description="least difference of scores within a pair, in standard deviations of the reward"
    )
    beta: float = Field(0.1, gt=0, description="strength of the leash to the policy that a turn begins with")
    nll_weight: float = Field(0.0, ge=0, description="weight of the chosen answers' NLL a token in a turn (RPO)")


class BestOfNSpec(TurnsSpec):
    """Best-of-n distillation: sample n answers a prompt and imitate the best of them (RAFT, Dong et al. 2023)."""

    kind: Literal["best_of_n"] = "best_of_n"
    snapshot: str | None = Field(None, description="people's comparisons; the held-out ones choose the policy to keep")
    optimiser: Optimiser = Optimiser(learning_rate=4e-4, epochs=2)
    best: int = Field(2, ge=1, le=64, description="best answers of each prompt that are imitated")


class SuiteRef(Spec):
    """A version of a suite: its id, under which results are kept, and the location of its cases."""

    version: int
    location: str


class EvaluateSpec(Spec):
    """Score sampled responses with a reward model, and measure KL of the new policy to the reference, by slice."""

    kind: Literal["evaluate"] = "evaluate"
    policy: ModelRef
    before: ModelRef | None = Field(
        None, description="the policy to compare with: it answers the same prompts from the same seeds"
    )
    reference: ModelRef
    reward_models: tuple[str, ...] = Field((), description="locations of reward models; none: nothing is scored")
    prompts: str = Field(description="held-out and regression prompts")
    suites: tuple[SuiteRef, ...] = Field((), description="standing evaluations that both policies take")
    base_samples: str | None = Field(
        None, description="location of the reference's responses to these prompts, for best-of-n: see AnswersRow"
    )
    generation: Generation = Generation(samples_per_prompt=2)
    max_length: int = Field(1024, ge=16)
    seed: Seed = 0


class SuitesSpec(Spec):
    """A policy takes suites by itself, outside any round. model: its id in the database."""

    kind: Literal["suites"] = "suites"
    model: int
    policy: ModelRef
    suites: tuple[SuiteRef, ...] = Field(min_length=1)
    generation: Generation = Generation(samples_per_prompt=1)
    max_length: int = Field(1024, ge=16)


class JudgeSpec(Spec):
    """Ask an AI judge about comparisons, each in both orders. Its key is read when the run begins, never stored."""

    kind: Literal["judge"] = "judge"
    judge: int
    url: str
    model: str
    rubric: int | None = Field(None, description="id of the version it judges by; none: of a test")
    prompt_version: int = Field(description="app.domain.judges.PROMPT_VERSION")
    anchors: tuple[int, ...] = Field((), description="comparisons of the frozen set, judged again first")
    comparisons: tuple[int, ...] = Field((), description="in this order; those that it has judged are left out")
    max_tokens: int = Field(512, ge=1)


class ReviseSpec(Spec):
    """Ask an AI critic for a critique and a revision of answers, each under a principle drawn for it.

    The critic is an AI judge's endpoint; its key is read when the run begins, never stored.
    """

    kind: Literal["revise"] = "revise"
    judge: int
    url: str
    model: str
    rubric: int = Field(description="id of the version whose principles are drawn")
    prompt_version: int = Field(description="app.domain.constitution.PROMPT_VERSION")
    completions: tuple[int, ...] = Field(description="the answers, in this order; those with an outcome are left out")
    candidates: bool = Field(description="a revision is compared with its original by labelers")
    demonstrations: bool = Field(description="a revision is proposed as a demonstration, and waits for review")
    longest: int = Field(ge=1, description="characters of a revision, at most")
    max_tokens: int = Field(512, ge=1)
    seed: Seed = 0


RunSpec = Annotated[
    FreezeSpec
    | SampleSpec
    | SFTSpec
    | RewardSpec
    | DPOSpec
    | OnPolicyDPOSpec
    | BestOfNSpec
    | PPOSpec
    | RLOOSpec
    | GRPOSpec
    | EvaluateSpec
    | JudgeSpec
    | ReviseSpec
    | SuitesSpec,
    Field(discriminator="kind"),
]
RUN_SPEC: TypeAdapter[RunSpec] = TypeAdapter(RunSpec)
