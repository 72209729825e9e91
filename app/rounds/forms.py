"""What an operator decides about a round. Stored with it, complete, so that nothing depends on later defaults.

A setting has the name of the spec's field it becomes, those of the reward model with `reward_` before it (see
`app.rounds.stages`). The form of a new round is made from what stands here: see `app.rounds.controls`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from app.domain.replay import Reading
from app.specs import (
    LOSS_DEFAULTS,
    READ_BY,
    DPOSpec,
    Generation,
    Lora,
    Optimiser,
    PPOSpec,
    Precision,
    PreferenceLoss,
    RewardSpec,
    SFTSpec,
    check_read,
)

Algorithm = Literal["sft", "dpo", "ppo"]
Group = Literal["reads", "policy", "reward", "samples"]

_SPECS: dict[Any, type[SFTSpec] | type[DPOSpec] | type[PPOSpec]] = {"sft": SFTSpec, "dpo": DPOSpec, "ppo": PPOSpec}
_REWARD_OPTIMISER: Optimiser = RewardSpec.model_fields["optimiser"].default
_DPO, _PPO, _REWARD = DPOSpec.model_fields, PPOSpec.model_fields, RewardSpec.model_fields


# Full weights learn best at about a tenth of the rate of adapters ("LoRA Without Regret", Schulman et al. 2025).
FULL_WEIGHTS = 0.1
RATES = {"learning_rate": "lora", "reward_learning_rate": "reward_lora"}  # where not given, it depends on the other
DERIVED = {*RATES, "beta"}  # where not given, their defaults depend on other settings: the form leaves them empty

# Settings that only some losses of DPO read, and their names in its spec: PPO has a gamma of its own.
_OF_LOSSES = {"simpo_gamma" if name == "gamma" else name: name for name in READ_BY if name != "thumbs"}


class Setting(NamedTuple):
    """Where a setting stands in the form, and for which algorithms."""

    group: Group
    label: str
    algorithms: tuple[str, ...] = ("sft", "dpo", "ppo")
    advanced: bool = False


SFT, DPO, PPO, LEARNS_REWARD = ("sft",), ("dpo",), ("ppo",), ("dpo", "ppo")


def _rare(group: Group, label: str, algorithms: tuple[str, ...] = ("sft", "dpo", "ppo")) -> Setting:
    return Setting(group, label, algorithms, advanced=True)


def default_optimiser(algorithm: Algorithm, loss: PreferenceLoss = "dpo") -> Optimiser:
    """The optimiser settings an algorithm's spec begins with; DPO's family has them by loss."""
    field = _SPECS[algorithm].model_fields["optimiser"]
    return field.get_default(call_default_factory=True, validated_data={"loss": loss})


def default_rate(name: str, algorithm: Algorithm, lora: bool, loss: PreferenceLoss = "dpo") -> float:
    """What the learning rate of this name is where none is given."""
    optimiser = default_optimiser(algorithm, loss) if name == "learning_rate" else _REWARD_OPTIMISER
    # Rounded: a tenth of 3e-4 is 3e-5, not 2.9999999999999997e-05.
    return optimiser.learning_rate if lora else float(f"{optimiser.learning_rate * FULL_WEIGHTS:.6g}")


class RoundConfig(BaseModel):
    """The settings of a round. Those of the other algorithms are kept at their defaults and not used."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    algorithm: Algorithm = "dpo"

    # ---- what it reads
    train_limit: Annotated[
        int | None,
        Field(ge=20, description="chosen at random by the seed; empty: all"),
        Setting("reads", "Train on at most"),
    ] = None
    heldout_limit: Annotated[
        int, Field(ge=1, description="held out, chosen at random"), Setting("reads", "Measure on at most")
    ] = 500
    replay_share: Annotated[
        float | None,
        Field(ge=0, le=1, description="of what it trains on, earlier rounds may have read this share; empty: any"),
        Setting("reads", "Replayed share", LEARNS_REWARD),
    ] = None
    replay_rounds: Annotated[
        int | None,
        Field(ge=1, le=100_000, description="replay only what was first read so many rounds ago; empty: any"),
        Setting("reads", "Replayed rounds", LEARNS_REWARD),
    ] = None

    # ---- policy
    learning_rate: Annotated[
        float,
        Field(gt=0, le=1),
        Setting("policy", "Learning rate"),
    ]
    epochs: Annotated[
        int, Field(ge=1, le=100, description="over what it reads; PPO: over each batch"), Setting("policy", "Epochs")
    ]
    reference: Annotated[
        Literal["base", "previous"],
        Field(
            description="base: the newest fine-tuned model, else the base model; previous: the policy it begins with"
        ),
        Setting("policy", "Kept close to", LEARNS_REWARD),
    ] = "base"
    loss: Annotated[
        PreferenceLoss, Field(description="ORPO and SimPO have no reference"), Setting("policy", "Loss", DPO)
    ] = _DPO["loss"].default
    beta: Annotated[
        float,
        Field(gt=0, le=100, description="smaller: further from the reference"),
        Setting("policy", "Beta", DPO),
    ]
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5, description="above 0: conservative DPO; robust: the rate of flipped labels"),
        _rare("policy", "Label smoothing", DPO),
    ] = _DPO["label_smoothing"].default
    soft_labels: Annotated[
        bool,
        Field(description="DPO: learn how sure the labelers are together, not only who won"),
        _rare("policy", "Soft labels", DPO),
    ] = _DPO["soft_labels"].default
    length_average: Annotated[
        bool, Field(description="IPO: log-ratios a token, not their sum"), _rare("policy", "Length average", DPO)
    ] = _DPO["length_average"].default
    simpo_gamma: Annotated[
        float, Field(ge=0, le=100, description="SimPO: the margin, about half of beta"), _rare("policy", "Gamma", DPO)
    ] = _DPO["gamma"].default
    desirable_weight: Annotated[
        float, Field(ge=0, le=100, description="KTO: of liked responses"), _rare("policy", "Desirable weight", DPO)
    ] = _DPO["desirable_weight"].default
    undesirable_weight: Annotated[
        float, Field(ge=0, le=100, description="KTO: of disliked ones"), _rare("policy", "Undesirable weight", DPO)
    ] = _DPO["undesirable_weight"].default
    nll_weight: Annotated[
        float,
        Field(ge=0, le=100, description="of the chosen responses' likelihood, mixed into the loss"),
        _rare("policy", "NLL weight", DPO),
    ] = _DPO["nll_weight"].default
    episodes: Annotated[
        int, Field(ge=1, le=1_000_000, description="sampled responses in all"), Setting("policy", "Episodes", PPO)
    ] = _PPO["episodes"].default
    rollout_size: Annotated[
        int,
        Field(ge=1, le=100_000, description="sampled before each round of updates"),
        _rare("policy", "Rollout", PPO),
    ] = _PPO["rollout_size"].default
    rollout_samples: Annotated[
        int, Field(ge=1, le=64, description="of a rollout, to one prompt"), _rare("policy", "Answers per prompt", PPO)
    ] = _PPO["samples_per_prompt"].default
    kl_coef: Annotated[
        float,
        Field(ge=0, le=100, description="where the leash begins; 0 stays 0"),
        Setting("policy", "KL coefficient", PPO),
    ] = _PPO["kl_coef"].default
    kl_control: Annotated[
        Literal["adaptive", "fixed"],
        Field(description="adaptive: the coefficient follows the target"),
        Setting("policy", "KL control", PPO),
    ] = "adaptive"
    kl_target: Annotated[
        float, Field(gt=0, le=10_000, description="nats a response"), Setting("policy", "KL target", PPO)
    ] = _PPO["kl_target"].default
    kl_horizon: Annotated[
        int, Field(ge=1, le=1_000_000, description="episodes over which it adapts"), _rare("policy", "KL horizon", PPO)
    ] = _PPO["kl_horizon"].default
    kl_stop: Annotated[
        float | None,
        Field(gt=0, le=10_000, description="stop beyond these nats a response; empty: never"),
        _rare("policy", "Stop at KL", PPO),
    ] = _PPO["kl_stop"].default
    approxkl_stop: Annotated[
        float | None,
        Field(gt=0, le=100, description="end a batch's updates beyond this policy/approxkl; empty: never"),
        _rare("policy", "Stop at approximate KL", PPO),
    ] = _PPO["approxkl_stop"].default
    clip_range: Annotated[
        float, Field(gt=0, le=10, description="of the probability ratio"), _rare("policy", "Clip range", PPO)
    ] = _PPO["clip_range"].default
    gamma: Annotated[float, Field(gt=0, le=1, description="of later rewards"), _rare("policy", "Discount", PPO)] = _PPO[
        "gamma"
    ].default
    gae_lambda: Annotated[
        float,
        Field(ge=0, le=1, description="of advantages; 1: less bias, more noise"),
        _rare("policy", "GAE lambda", PPO),
    ] = _PPO["gae_lambda"].default
    vf_coef: Annotated[
        float, Field(ge=0, le=100, description="weight of the value loss"), _rare("policy", "Value coefficient", PPO)
    ] = _PPO["vf_coef"].default
    value_clip_range: Annotated[
        float, Field(gt=0, le=100, description="of the values, about the old ones"), _rare("policy", "Value clip", PPO)
    ] = _PPO["value_clip_range"].default
    evaluate_every: Annotated[
        int,
        Field(ge=1, le=100_000, description="rollouts between sample pages"),
        _rare("policy", "Evaluate every", PPO),
    ] = _PPO["evaluate_every"].default
    critic: Annotated[
        Literal["policy", "reward"],
        Field(description="a value head on the policy, or a model that begins as the reward's"),
        _rare("policy", "Critic", PPO),
    ] = _PPO["critic"].default
    ensemble_score: Annotated[
        Literal["mean", "min", "mean_minus_variance"],
        Field(description="how an ensemble's heads make one score"),
        _rare("policy", "Ensemble score", PPO),
    ] = _PPO["ensemble_score"].default
    variance_weight: Annotated[
        float, Field(ge=0, le=100, description="of mean_minus_variance"), _rare("policy", "Variance weight", PPO)
    ] = _PPO["variance_weight"].default
    normalise_scores: Annotated[
        bool, Field(description="by their running deviation"), _rare("policy", "Normalise scores", PPO)
    ] = _PPO["normalise_scores"].default
    clip_score: Annotated[
        float | None,
        Field(gt=0, le=1e6, description="to plus or minus this; empty: not"),
        _rare("policy", "Clip scores", PPO),
    ] = _PPO["clip_score"].default
    whiten_rewards: Annotated[bool, Field(description="of each batch"), _rare("policy", "Whiten rewards", PPO)] = _PPO[
        "whiten_rewards"
    ].default
    missing_eos: Annotated[
        Literal["subtract", "replace"],
        Field(description="what the penalty does to the score of a cut response"),
        _rare("policy", "Cut responses", PPO),
    ] = _PPO["missing_eos"].default
    missing_eos_penalty: Annotated[
        float, Field(ge=0, le=1e6, description="of a response cut by length"), _rare("policy", "Penalty", PPO)
    ] = _PPO["missing_eos_penalty"].default
    ptx: Annotated[
        bool, Field(description="mix approved demonstrations into every step"), _rare("policy", "Demonstrations", PPO)
    ] = False
    ptx_coef: Annotated[
        float, Field(ge=0, le=100, description="weight of the demonstrations"), _rare("policy", "Their weight", PPO)
    ] = _PPO["ptx_coef"].default
    packing: Annotated[
        bool, Field(description="several demonstrations in one row"), _rare("policy", "Packing", SFT)
    ] = SFTSpec.model_fields["packing"].default
    lora: Annotated[bool, Field(description="low-rank adapters; off: all weights"), _rare("policy", "LoRA")] = True
    lora_rank: Annotated[
        int,
        Field(ge=1, le=512, description="of the policy's and the reward model's adapters; it can grow, not shrink"),
        _rare("policy", "LoRA rank"),
    ] = Lora().rank
    max_length: Annotated[
        int,
        Field(ge=16, le=131_072, description="tokens of prompt and response; at least the longest response and 512"),
        _rare("policy", "Max length"),
    ] = _DPO["max_length"].default
    batch_size: Annotated[int, Field(ge=1, le=4096, description="rows a step"), _rare("policy", "Batch size")]
    microbatch_size: Annotated[
        int, Field(ge=1, le=4096, description="rows at once; gradients accumulate"), _rare("policy", "Microbatch size")
    ]
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of the steps in which the rate rises"), _rare("policy", "Warm-up")
    ]
    weight_decay: Annotated[float, Field(ge=0, le=1), _rare("policy", "Weight decay")] = Optimiser.model_fields[
        "weight_decay"
    ].default
    gradient_checkpointing: Annotated[
        bool, Field(description="less memory, more time"), _rare("policy", "Gradient checkpointing")
    ] = False
    precision: Annotated[
        Precision, Field(description="auto: what this machine is fastest in"), _rare("policy", "Precision")
    ] = "auto"

    # ---- reward model
    reward_learning_rate: Annotated[float, Field(gt=0, le=1), Setting("reward", "Learning rate", LEARNS_REWARD)]
    reward_epochs: Annotated[int, Field(ge=1, le=100), Setting("reward", "Epochs", LEARNS_REWARD)] = (
        _REWARD_OPTIMISER.epochs
    )
    reward_ensemble: Annotated[
        int, Field(ge=1, le=16, description="heads on one trunk"), _rare("reward", "Ensemble", LEARNS_REWARD)
    ] = _REWARD["ensemble"].default
    reward_aspects: Annotated[
        bool,
        Field(description="a head of its own for each aspect that 20 comparisons decide"),
        _rare("reward", "Aspects", LEARNS_REWARD),
    ] = False
    reward_ties: Annotated[
        Literal["half", "rao_kupper", "davidson"],
        Field(description="half a win each way, or an outcome of their own"),
        _rare("reward", "Ties", LEARNS_REWARD),
    ] = _REWARD["ties"].default
    reward_margin: Annotated[
        Literal["none", "small", "large"],
        Field(description="what the difference must exceed, by strength"),
        _rare("reward", "Margin", LEARNS_REWARD),
    ] = _REWARD["margin"].default
    reward_soft_labels: Annotated[
        bool,
        Field(description="learn how sure the labelers are together, not only who won"),
        _rare("reward", "Soft labels", LEARNS_REWARD),
    ] = _REWARD["soft_labels"].default
    reward_label_smoothing: Annotated[float, Field(ge=0, lt=0.5), _rare("reward", "Label smoothing", LEARNS_REWARD)] = (
        _REWARD["label_smoothing"].default
    )
    reward_centering: Annotated[
        float,
        Field(ge=0, le=10, description="weight of a mean reward of 0"),
        _rare("reward", "Centering", LEARNS_REWARD),
    ] = _REWARD["centering"].default
    reward_lora: Annotated[
        bool, Field(description="low-rank adapters; off: all weights"), _rare("reward", "LoRA", LEARNS_REWARD)
    ] = True

    # ---- samples that return to the queue
    prompts: Annotated[
        int, Field(ge=1, le=100_000, description="at most, least asked first"), Setting("samples", "Prompts")
    ] = 100
    samples_per_prompt: Annotated[int, Field(ge=2, le=64), Setting("samples", "Samples per prompt")] = 4
    pairs_per_prompt: Annotated[
        int, Field(ge=1, le=100, description="at most"), Setting("samples", "Comparisons per prompt")
    ] = 3
    max_new_tokens: Annotated[
        int, Field(ge=1, le=8192, description="tokens"), Setting("samples", "Longest response")
    ] = 64
    sample_previous: Annotated[
        bool,
        Field(description="the policy before answers the same prompts anew"),
        _rare("samples", "Previous policy too"),
    ] = False
    temperature: Annotated[
        float, Field(gt=0, le=5, description="PPO samples with it too"), _rare("samples", "Temperature")
    ] = 1.0
    seed: Annotated[
        int, Field(ge=0, lt=2**31, description="the same seed repeats the round"), Setting("samples", "Seed")
    ] = 0

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("algorithm", "dpo") not in _SPECS:
            return values
        algorithm = values.get("algorithm", "dpo")
        given = {name: value for name, value in values.items() if value not in (None, "")}
        loss: PreferenceLoss = given["loss"] if given.get("loss") in LOSS_DEFAULTS else "dpo"
        rates = {
            name: default_rate(name, algorithm, not _is_off(given.get(lora)), loss) for name, lora in RATES.items()
        }
        own = default_optimiser(algorithm, loss).model_dump(
            include={"epochs", "batch_size", "microbatch_size", "warmup_ratio"}
        )
        return own | rates | {"beta": LOSS_DEFAULTS[loss].beta} | given

    @field_validator(*_OF_LOSSES)
    @classmethod
    def _its_loss_reads_it(cls, value: Any, info: ValidationInfo) -> Any:
        loss = info.data.get("loss") if info.data.get("algorithm") == "dpo" else None
        return check_read(_OF_LOSSES[info.field_name or ""], value, loss)

    @classmethod
    def defaults(
        cls, algorithm: Algorithm, generation: Generation, adapter_rank: int | None = None, **settings: Any
    ) -> "RoundConfig":
        """The project's way of sampling and the algorithm's own settings, but for those that are given.

        Args:
            adapter_rank: the LoRA rank of the policy to improve, which it keeps.
        """
        sampling = generation.model_dump(include={"max_new_tokens", "temperature"})
        # A round compares a prompt's responses; a project may ask for one alone.
        sampling["samples_per_prompt"] = max(2, generation.samples_per_prompt)
        rank = {"lora_rank": adapter_rank} if adapter_rank else {}
        return cls.model_validate({"algorithm": algorithm} | sampling | rank | settings)

    @property
    def generation(self) -> Generation:
        return Generation(
            samples_per_prompt=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )

    @property
    def reading(self) -> Reading:
        return Reading(**{name: getattr(self, name) for name in Reading._fields})

    def named(self, names: Iterable[str], prefix: str = "") -> dict[str, Any]:
        """The settings called like these fields of a spec, with the prefix: what the spec takes from here as it is."""
        own = type(self).model_fields
        return {name: getattr(self, prefix + name) for name in names if prefix + name in own}


def _is_off(value: Any) -> bool:
    """As pydantic reads it; what is neither on nor off is refused with its own field."""
    return str(value).lower() in ("false", "off", "no", "0", "f", "n")
