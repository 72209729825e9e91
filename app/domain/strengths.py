"""How far a round may move the policy: the one choice that its form begins with."""

from typing import Literal, NamedTuple

Strength = Literal["gentle", "balanced", "strong"]


class Force(NamedTuple):
    """A strength: how far a round may move the policy."""

    label: str
    about: str
    kl_budget: float  # nats a response: see the specs' `kl_budget` and `kl_target`


STRENGTHS: dict[str, Force] = {
    "gentle": Force("Gentle", "stays close to the current policy", 3.0),
    "balanced": Force("Balanced", "follows people's preferences, within limits", 8.0),
    "strong": Force("Strong", "may change the style a lot", 16.0),
}
