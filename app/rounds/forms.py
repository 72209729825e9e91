"""The settings of a round. They are stored complete with the round, so that nothing depends on later defaults.

Each algorithm has its own class. Settings that all rounds share are declared here. The others are generated from the
fields of the round's specs (see `app.rounds.stages`), with the prefix `reward_` for the reward model's. The form of a
new round is made from these classes: see `app.rounds.controls`.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from app.domain.replay import Reading
from app.domain.rounds import ALGORITHMS
from app.domain.strengths import STRENGTHS, Strength
from app.rounds.words import WORDS
from app.specs import (
    LOSS_DEFAULTS,
    BestOfNSpec,
    DPOSpec,
    Generation,
    GRPOSpec,
    Lora,
    ModelRef,
    OnPolicyDPOSpec,
    Optimiser,
    PPOSpec,
    RewardSpec,
    RLOOSpec,
    SFTSpec,
    Spec,
)

Algorithm = Literal["on_policy_dpo", "dpo", "best_of_n", "rloo", "grpo", "ppo", "sft"]
Group = Literal["reads", "policy", "reward", "samples"]

SPECS: dict[str, type[Spec]] = {
    "on_policy_dpo": OnPolicyDPOSpec,
    "dpo": DPOSpec,
    "best_of_n": BestOfNSpec,
    "rloo": RLOOSpec,
    "grpo": GRPOSpec,
    "ppo": PPOSpec,
    "sft": SFTSpec,
}
RECOMMENDED: Algorithm = "on_policy_dpo"


BUDGETS = ("kl_budget", "kl_target")  # if a spec has one of these, the strength sets it unless it is given

# Full weights learn best at about a tenth of the learning rate of adapters ("LoRA Without Regret", Schulman et al.
# 2025).
FULL_WEIGHTS = 0.1

HELDOUT_SHARE = 0.3  # of the sampled prompts

# Fields of the policy's spec whose name means something else in a round's settings.
RENAMED = {"samples_per_prompt": "rollout_samples", "pairs_per_prompt": "rollout_pairs"}

# Fields that a round fills in itself, or that all specs share and the classes below declare once.
_NOT_SETTINGS = {
    *(
        "kind",
        "policy",
        "backbone",
        "reference",
        "reward_models",
        "snapshot",
        "prompts",
        "demonstrations",
        "thumbs",
        "ptx",
    ),
    *("lora", "optimiser", "max_length", "max_new_tokens", "temperature", "aspects", "seed"),
}
_LARGEST = 1_000_000_000  # if a spec has no bound: larger numbers overflow in the database or the trainer


class Setting(NamedTuple):
    """A setting's place in the form, and the algorithms that have it."""

    group: Group
    label: str
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    rare: bool = False
    dependent: bool = False  # its default depends on other settings, so the form leaves it empty


_LEARN_REWARD = tuple(name for name in ALGORITHMS if name != "sft")

# Settings that come first in their group, in this order; the others are folded.
_COMMON = (
    *("strength", "turns", "rollout_samples", "kl_budget", "loss", "beta", "best", "episodes", "kl_target", "kl_coef"),
    *("learning_rate", "epochs", "reward_trunk", "reward_folds"),
)


class RoundConfig(BaseModel):
    """The settings that all rounds share; the algorithms' classes add their own.

    Settings that the algorithm does not read keep their defaults and are not shown.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    spec: ClassVar[type[Spec]]  # the spec of the policy's run

    algorithm: Algorithm = RECOMMENDED

    # ---- what it reads
    train_limit: Annotated[
        int | None,
        Field(ge=20, le=_LARGEST, description="rows, chosen at random by the seed; empty: all"),
        Setting("reads", "Train on at most"),
    ] = None
    heldout_limit: Annotated[
        int,
        Field(ge=1, le=_LARGEST, description="held-out rows, chosen at random"),
        Setting("reads", "Measure on at most"),
    ] = 500
    replay_share: Annotated[
        float | None,
        Field(ge=0, le=1, description="largest share of comparisons that earlier rounds have read; empty: no limit"),
        Setting("reads", "Replayed share", _LEARN_REWARD),
    ] = None
    replay_rounds: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="leave out comparisons first read more than this many rounds ago; empty: no limit",
        ),
        Setting("reads", "Replayed rounds", _LEARN_REWARD),
    ] = None
    ai_share: Annotated[
        float,
        Field(
            ge=0,
            le=0.9,
            description="share of the training comparisons that only admitted AI judges judged, at most; 0: none. See "
            "Judges",
        ),
        Setting("reads", "AI judges' share", _LEARN_REWARD),
    ] = 0.0

    # ---- policy
    reference: Annotated[
        Literal["base", "previous"],
        Field(description="base: the newest fine-tuned model, or the base model; previous: the round's first policy"),
        Setting("policy", "Kept close to", ("dpo", "ppo", "rloo", "grpo")),
    ] = "base"
    kl_control: Annotated[
        Literal["adaptive", "fixed"],
        Field(description="adaptive: the coefficient follows the KL target; fixed: strength and KL target do nothing"),
        Setting("policy", "KL control", ("ppo", "rloo", "grpo")),
    ] = "adaptive"
    ptx: Annotated[
        bool,
        Field(description="on: mix approved demonstrations into every step"),
        Setting("policy", "Demonstrations", ("ppo", "rloo", "grpo"), rare=True),
    ] = False
    thumbs: Annotated[
        bool,
        Field(description="on: KTO also learns from thumbs on responses to train prompts; other losses never do"),
        Setting("policy", "Thumbs", ("dpo",), rare=True),
    ] = True
    lora: Annotated[
        bool,
        Field(description="on: train low-rank adapters; off: train all weights"),
        Setting("policy", "LoRA", rare=True),
    ] = True
    lora_rank: Annotated[
        int,
        Field(
            ge=1,
            le=512,
            description="rank of the policy's and the reward model's adapters; later rounds can raise it, not lower it",
        ),
        Setting("policy", "LoRA rank", rare=True),
    ] = Lora().rank
    max_length: Annotated[
        int,
        Field(
            ge=16,
            le=131_072,
            description="tokens of prompt and response together; raised to the longest response plus 512 if less",
        ),
        Setting("policy", "Max length", rare=True),
    ] = DPOSpec.model_fields["max_length"].default

    # ---- reward model
    reward_aspects: Annotated[
        bool,
        Field(description="on: train a separate head for each aspect that at least 20 comparisons decide"),
        Setting("reward", "Aspects", _LEARN_REWARD, rare=True),
    ] = False
    reward_lora: Annotated[
        bool,
        Field(description="trained trunk: on trains low-rank adapters, off trains all weights"),
        Setting("reward", "LoRA", _LEARN_REWARD, rare=True),
    ] = True

    # ---- samples that return to the queue
    prompts: Annotated[
        int,
        Field(ge=1, le=100_000, description="largest number of prompts; prompts asked least often come first"),
        Setting("samples", "Prompts"),
    ] = 100
    samples_per_prompt: Annotated[int, Field(ge=2, le=64), Setting("samples", "Samples per prompt")] = 4
    pairs_per_prompt: Annotated[
        int,
        Field(ge=1, le=100, description="largest number of comparisons per prompt"),
        Setting("samples", "Comparisons per prompt"),
    ] = 3
    promotion: Annotated[
        Literal["people", "reward_model"],
        Field(
            description="people: adopted once people are shown to prefer it; reward model: adopted at the round's end, "
            "unless the reward model finds it worse. An operator can adopt any policy with a reason",
        ),
        Setting("samples", "Adopted by"),
    ] = "people"
    evaluation_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of held-out prompts, on which people compare the new policy with the adopted policy and "
            "with the first policy; 0: none",
        ),
        Setting("samples", "Evaluation share"),
    ] = HELDOUT_SHARE
    max_new_tokens: Annotated[
        int,
        Field(ge=1, le=8192, description="tokens, for these samples and while training"),
        Setting("samples", "Longest response"),
    ] = 64
    sample_previous: Annotated[
        bool,
        Field(description="on: the previous policy answers the train prompts too, and people compare both on them"),
        Setting("samples", "Previous policy too", rare=True),
    ] = False
    temperature: Annotated[
        float,
        Field(gt=0, le=5, description="for these samples and while training; higher is more varied"),
        Setting("samples", "Temperature", rare=True),
    ] = 1.0
    seed: Annotated[
        int,
        Field(ge=0, lt=2**31, description="the same seed gives the same random choices"),
        Setting("samples", "Seed"),
    ] = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RoundConfig":
        """Return the settings for the values' algorithm, by default the recommended one. Values of other settings are
        ignored.

        Raises:
            ValidationError: a value is wrong, or the algorithm's spec refuses the combination.
        """
        algorithm = cls.model_validate({"algorithm": values.get("algorithm") or RECOMMENDED}).algorithm
        own = {name: values[name] for name, *_ in settings_of(algorithm) if name in values}
        config = CONFIGS[algorithm].model_validate(own | {"algorithm": algorithm})
        spec = SPECS[algorithm]
        stand_ins = {name: value for name, value in _STAND_INS.items() if name in spec.model_fields}
        spec.model_validate(policy_settings(config) | stand_ins)
        return config

    @classmethod
    def defaults(
        cls, algorithm: str, generation: Generation, adapter_rank: int | None = None, **settings: Any
    ) -> "RoundConfig":
        """Return the algorithm's defaults with the project's sampling settings and the given settings.

        Args:
            adapter_rank: the LoRA rank of the policy to improve, which it keeps.
        """
        sampling = generation.model_dump(include={"max_new_tokens", "temperature"})
        # A round compares a prompt's responses, so it needs at least two; a project may ask for one.
        sampling["samples_per_prompt"] = max(2, generation.samples_per_prompt)
        rank = {"lora_rank": adapter_rank} if adapter_rank else {}
        return cls.of({"algorithm": algorithm} | sampling | rank | settings)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in settings that depend on others and were not given."""
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value not in (None, "")}
        return {name: default(cls, name, given) for name in dependent(cls)} | given

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
        """Return the settings named like these fields of a spec, with the prefix. The spec takes them unchanged."""
        own = type(self).model_fields
        return {name: getattr(self, prefix + name) for name in names if prefix + name in own}


# ---- the algorithms' own settings ------------------------------------------------------------------------------------


def _settings_of(
    spec: type[BaseModel], group: Group, prefix: str = "", defaults: BaseModel | None = None
) -> dict[str, Any]:
    """Return fields for `create_model`, made from those of a spec.

    Args:
        defaults: the default values; None: the spec's own.
    """
    found: dict[str, Any] = {}
    for field, info in spec.model_fields.items():
        if field in _NOT_SETTINGS:
            continue
        name = prefix + field if prefix else RENAMED.get(field, field)
        label, about = WORDS.get(name, (field.replace("_", " ").capitalize(), ""))
        bounds = () if any(isinstance(each, Le | Lt) for each in info.metadata) else _bound(info)
        depends = field.endswith("learning_rate") or field in BUDGETS or info.default_factory is not None
        place = Setting(group, label, rare=name not in _COMMON, dependent=depends)
        kind: Any = Annotated[(info.annotation, *info.metadata, *bounds, place)]
        begins = getattr(defaults, field) if defaults else info.default
        found[name] = (kind, Field(begins, description=about or info.description))
    return found


def _bound(info: FieldInfo) -> tuple[Le, ...]:
    kinds = getattr(info.annotation, "__args__", (info.annotation,))
    return (Le(_LARGEST),) if int in kinds or float in kinds else ()


_REWARD_OPTIMISER: Optimiser = RewardSpec.model_fields["optimiser"].default


def _config_of(algorithm: str) -> type[RoundConfig]:
    spec = SPECS[algorithm]
    fields = _settings_of(Optimiser, "policy", defaults=_default(spec.model_fields["optimiser"], {}))
    fields |= _settings_of(spec, "policy")
    if any(name in fields for name in BUDGETS):
        about = "; ".join(f"{force.label}: {force.about}" for force in STRENGTHS.values())
        fields["strength"] = (Annotated[Strength, Setting("policy", "Strength")], Field("balanced", description=about))
    if algorithm != "sft":
        optimiser = _settings_of(Optimiser, "reward", "reward_", _REWARD_OPTIMISER)
        fields |= {name: optimiser[name] for name in ("reward_learning_rate", "reward_epochs")}
        fields |= _settings_of(RewardSpec, "reward", "reward_")
    made: type[RoundConfig] = cast(Any, create_model)(f"{algorithm}_config", __base__=RoundConfig, **fields)
    made.spec = spec
    return made


def _default(info: FieldInfo, given: Mapping[str, Any]) -> Any:
    """Return a field's default; for DPO and its variants some depend on the loss."""
    loss = given.get("loss")
    chosen = {"loss": loss if loss in LOSS_DEFAULTS else DPOSpec.model_fields["loss"].default}
    return info.get_default(call_default_factory=True, validated_data=chosen)


_STAND_INS: dict[str, Any] = {
    **dict.fromkeys(("policy", "reference"), ModelRef(base="-")),
    **dict.fromkeys(("snapshot", "prompts", "demonstrations"), "-"),
    "reward_models": ("-",),
}


def settings_of(algorithm: str) -> list[tuple[str, FieldInfo, Setting]]:
    """Return the settings that an algorithm uses: name, field, and place in the form; common ones first."""
    found = [
        (name, info, each)
        for name, info in CONFIGS[algorithm].model_fields.items()
        for each in info.metadata
        if isinstance(each, Setting) and algorithm in each.algorithms
    ]
    order = {name: number for number, name in enumerate(_COMMON)}
    return sorted(found, key=lambda setting: order.get(setting[0], len(order)))


def dependent(cls: type[RoundConfig]) -> list[str]:
    """Return the settings whose defaults depend on others, so that they are not shown unless given."""
    return [
        name
        for name, info in cls.model_fields.items()
        if any(isinstance(each, Setting) and each.dependent for each in info.metadata)
    ]


def default(cls: type[RoundConfig], name: str, given: Mapping[str, Any]) -> float:
    """Return the default of a setting that depends on others.

    A KL budget depends on the strength, beta on the loss, a learning rate on the loss and on LoRA.
    """
    if name in BUDGETS:
        strength = str(given.get("strength", ""))
        nats: float = getattr(STRENGTHS[strength if strength in STRENGTHS else "balanced"], name)
        return nats
    if not name.endswith("learning_rate"):
        return _default(cls.spec.model_fields[name], given)
    if name == "reward_learning_rate":
        rate, lora = _REWARD_OPTIMISER.learning_rate, given.get("reward_lora")
    else:
        optimiser: Optimiser = _default(cls.spec.model_fields["optimiser"], given)
        fields = cls.spec.model_fields
        rate = optimiser.learning_rate if name == "learning_rate" else _default(fields[name], given)
        lora = given.get("lora")
    # Rounded: a tenth of 3e-4 would be 2.9999999999999997e-05.
    return float(f"{rate * FULL_WEIGHTS:.6g}") if _is_off(lora) else rate


def _is_off(value: Any) -> bool:
    """Tell whether a value means off, as pydantic reads it. Invalid values are refused by their own field."""
    return str(value).lower() in ("false", "off", "no", "0", "f", "n")


CONFIGS: dict[str, type[RoundConfig]] = {algorithm: _config_of(algorithm) for algorithm in SPECS}


# ---- what the specs take from the settings ---------------------------------------------------------------------------


def policy_settings(config: RoundConfig) -> dict[str, Any]:
    """Return the fields of the policy's spec that are settings, without the data and models of the run."""
    spec = SPECS[config.algorithm]
    names = [name for name in spec.model_fields if name not in (*RENAMED, "prompts", "reference", "ptx", "thumbs")]
    own = config.named(names)
    own |= {field: getattr(config, name) for field, name in RENAMED.items() if field in spec.model_fields}
    if "kl_target" in own and config.kl_control == "fixed":
        own["kl_target"] = None
    return own | {
        "lora": lora(config, config.lora),
        "optimiser": Optimiser(**config.named(Optimiser.model_fields)),
    }


def lora(config: RoundConfig, wanted: bool) -> Lora | None:
    return Lora(rank=config.lora_rank, alpha=2 * config.lora_rank) if wanted else None


def reward_optimiser(config: RoundConfig) -> Optimiser:
    """Return the reward model's own learning rate and epochs; the memory settings are shared with the policy."""
    shared = config.named(("microbatch_size", "microbatch_tokens", "gradient_checkpointing", "precision"))
    return _REWARD_OPTIMISER.model_copy(update=shared | config.named(Optimiser.model_fields, "reward_"))
