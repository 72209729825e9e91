"""How far a round may move the policy: the one choice that its form begins with."""

from typing import Literal, NamedTuple

Strength = Literal["gentle", "balanced", "strong"]


class Force(NamedTuple):
    """A strength: how far a round may move the policy."""

    label: str
    about: str
    kl_budget: float  # nats a response: see the specs' `kl_budget` and `kl_target`


# Measured with SmolLM2-135M-Instruct and 400 judgments that like short answers (docs/learning.md): 4 nats won about 0.8
# of the comparisons with the base on prompts like the train prompts, 12 nats 0.9, and more won no more.
STRENGTHS: dict[str, Force] = {
    "gentle": Force("Gentle", "stays close to the current policy", 4.0),
    "balanced": Force("Balanced", "follows people's preferences, within limits", 12.0),
    "strong": Force("Strong", "may change the style a lot", 20.0),
}
