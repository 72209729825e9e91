"""The strength of a round, which is how far it may move the policy: the first choice in its form."""

from typing import Literal, NamedTuple

Strength = Literal["gentle", "balanced", "strong"]


class Force(NamedTuple):
    """A strength: how far a round may move the policy, in nats per response.

    Attributes:
        kl_budget: for methods that work in turns: see the specs' `kl_budget`.
        kl_target: for PPO, RLOO and GRPO. It is half the budget, because they have no phase on people's comparisons.
            This value is not measured.
    """

    label: str
    about: str
    kl_budget: float
    kl_target: float


# Measured with SmolLM2-135M-Instruct and 400 judgments (docs/learning.md): the phase on people's comparisons, which may
# use half of a budget, wins about 0.8 of the comparisons with the base with 4 nats and 0.9 with 12; more did not help.
STRENGTHS: dict[str, Force] = {
    "gentle": Force("Gentle", "stays close to the current policy", 8.0, 4.0),
    "balanced": Force("Balanced", "follows people's preferences, within limits", 24.0, 12.0),
    "strong": Force("Strong", "may change the style a lot", 40.0, 20.0),
}
