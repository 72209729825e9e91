"""Select the comparisons that a reward model can learn from, and check that there are enough."""

from collections.abc import Sequence

from app.errors import InvalidInput
from app.specs import RewardSpec
from trainer.batching.data import MIN_PAIRS, EncodedPairs, Pair, describe_left_out, require_pairs
from trainer.reward.network import REWARD
from trainer.reward.objective import aspect_outcomes, outcomes


def usable(spec: RewardSpec, encoded: EncodedPairs) -> tuple[list[Pair], list[Pair], tuple[str, ...]]:
    """Return the training pairs that have a target, those that have none, and sentences about all left-out rows.

    With hard labels, a tie has no target, unless ties are an outcome or an aspect has a winner.
    """
    kept: list[Pair] = []
    ties: list[Pair] = []
    for pair in encoded.train:
        said = any(outcomes(pair, spec)) or any(any(aspect_outcomes(pair, aspect, spec)) for aspect in spec.aspects)
        (kept if said else ties).append(pair)
    left_out = {"are ties, which hard labels cannot say": [pair.row.comparison_id for pair in ties]} if ties else {}
    return kept, ties, (*encoded.dropped, *describe_left_out(left_out, "comparisons"))


def require_targets(spec: RewardSpec, pairs: Sequence[Pair], dropped: Sequence[str]) -> None:
    """Raise InvalidInput if too few pairs have a winner, overall or in an aspect, or if two heads share a name.

    Args:
        dropped: sentences that say why other rows were left out.
    """
    require_pairs(pairs, "A reward model", dropped)
    for aspect in spec.aspects:
        if aspect.partition("/")[0] == REWARD or spec.aspects.count(aspect) > 1:
            raise InvalidInput(
                f"{aspect} cannot be the name of an aspect, because two heads would have this name.",
                f"Name each aspect once, and do not name an aspect {REWARD}.",
            )
        decided = sum(pair.row.aspects.get(aspect, 0.5) != 0.5 for pair in pairs)
        if decided < MIN_PAIRS:
            raise InvalidInput(
                f"A head for {aspect} needs at least {MIN_PAIRS} training comparisons with a winner in it; there are "
                f"{decided}.",
                "Leave the aspect out, or collect more judgments that rate it.",
            )
