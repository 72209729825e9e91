"""What the labelers of one comparison say together, as training reads it."""

from collections.abc import Sequence
from typing import NamedTuple

# Beta(1/2, 1/2), the Jeffreys prior: a lone vote gives 3/4, and no number of votes gives certainty.
PRIOR = 0.5
# A reviewer who saw all judgments and rationales counts as this many labelers of one mind (p = 0.9).
VERDICT_VOTES = 4


class Consensus(NamedTuple):
    """preference: mean strength in [-3, 3] towards B. p_b: probability that B is better. weight: in the loss."""

    preference: float
    p_b: float
    weight: float


def side(preference: float) -> int:
    """-1 for A, 0 for a tie, 1 for B."""
    return (preference > 0) - (preference < 0)


def consensus(preferences: Sequence[int], verdict: int | None = None) -> Consensus | None:
    """The consensus of live judgments; a reviewer's verdict, where there is one, stands in their place.

    p_b is the posterior mean of the share of people who prefer B, ties counting half for each side:
    p_b = (n_B + n_tie / 2 + 1/2) / (n + 1).

    Every comparison weighs 1: how sure its labelers are is already in p_b.

    Returns:
        None when there is neither a judgment nor a verdict.
    """
    if verdict is not None:
        return Consensus(float(verdict), probability_b([verdict] * VERDICT_VOTES), 1.0)
    if not preferences:
        return None
    return Consensus(sum(preferences) / len(preferences), probability_b(preferences), 1.0)


def probability_b(preferences: Sequence[int]) -> float:
    """The smoothed share for B, in (0, 1)."""
    votes = sum((1 + side(preference)) / 2 for preference in preferences)
    return (votes + PRIOR) / (len(preferences) + 2 * PRIOR)
