"""What an operator decides about a round. Stored with it, complete, so that nothing depends on later defaults."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.specs import DPOSpec, Generation, Optimiser, PPOSpec, RewardSpec

Algorithm = Literal["dpo", "ppo"]

_SPECS: dict[Any, type[DPOSpec] | type[PPOSpec]] = {"dpo": DPOSpec, "ppo": PPOSpec}
_REWARD_OPTIMISER: Optimiser = RewardSpec.model_fields["optimiser"].default
_DPO, _PPO = DPOSpec.model_fields, PPOSpec.model_fields


def default_optimiser(algorithm: Algorithm) -> Optimiser:
    """The optimiser settings an algorithm's spec begins with."""
    return _SPECS[algorithm].model_fields["optimiser"].default


class RoundConfig(BaseModel):
    """The settings of a round. Those of the other algorithm are kept at their defaults and not used."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    algorithm: Algorithm = "dpo"
    reference: Annotated[
        Literal["base", "previous"],
        Field(description="the model the policy is kept close to: the base model, or the policy the round begins with"),
    ] = "base"
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    epochs: Annotated[int, Field(ge=1, le=100)]
    # What it reads
    train_limit: Annotated[
        int | None, Field(ge=20, description="train on at most so many comparisons, chosen at random by the seed")
    ] = None
    heldout_limit: Annotated[int, Field(ge=1, description="measure on at most so many held-out comparisons")] = 500
    # DPO
    beta: Annotated[float, Field(gt=0, le=100)] = _DPO["beta"].default
    # PPO
    episodes: Annotated[int, Field(ge=1, le=1_000_000)] = _PPO["episodes"].default
    kl_coef: Annotated[float, Field(ge=0, le=100)] = _PPO["kl_coef"].default
    kl_target: Annotated[float, Field(gt=0, le=10_000)] = _PPO["kl_target"].default
    # Reward model
    reward_learning_rate: Annotated[float, Field(gt=0, le=1)] = _REWARD_OPTIMISER.learning_rate
    reward_epochs: Annotated[int, Field(ge=1, le=100)] = _REWARD_OPTIMISER.epochs
    # Samples that return to the queue
    samples_per_prompt: Annotated[int, Field(ge=2, le=64)] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    prompts: Annotated[int, Field(ge=1, le=100_000, description="prompts sampled after training")] = 100
    pairs_per_prompt: Annotated[int, Field(ge=1, le=100, description="comparisons opened of one prompt's samples")] = 3
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _optimiser_of_the_algorithm(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("algorithm", "dpo") not in _SPECS:
            return values
        optimiser = default_optimiser(values.get("algorithm", "dpo"))
        defaults = {"learning_rate": optimiser.learning_rate, "epochs": optimiser.epochs}
        return defaults | {name: value for name, value in values.items() if value not in (None, "")}

    @classmethod
    def defaults(cls, algorithm: Algorithm, generation: Generation) -> "RoundConfig":
        """What the form begins with: the project's way of sampling and the algorithm's own settings."""
        sampling = generation.model_dump(include={"samples_per_prompt", "max_new_tokens", "temperature"})
        return cls.model_validate({"algorithm": algorithm, **sampling})

    @property
    def generation(self) -> Generation:
        return Generation(
            samples_per_prompt=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
