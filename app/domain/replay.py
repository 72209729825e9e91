"""Which comparisons a round reads: all that are new, and of those that earlier rounds have read as many as wanted.

A comparison is new until a round that ended with a policy has read it; from then on it is replayed. Its age is the
number of such rounds since, the one that read it first included.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple


class Reading(NamedTuple):
    """What a round wants to read; none is no limit."""

    train_limit: int | None = None
    heldout_limit: int | None = None
    replay_share: float | None = None  # of the training comparisons, at most this share may be replayed
    replay_rounds: int | None = None  # replay only comparisons of at most this age
    seed: int = 0


class Candidate(NamedTuple):
    """A decided comparison."""

    comparison_id: int
    split: str  # train | heldout
    winner: int  # -1 for A, 0 for a tie, 1 for B: app.domain.consensus.winner
    judgments: int
    first_round: int | None  # number of the round that read it first; none: it is new


def draw(ids: Sequence[int], limit: int | None, seed: int) -> set[int]:
    """At most `limit` of them, chosen at random by the seed."""
    if limit is None or len(ids) <= limit:
        return set(ids)
    return set(random.Random(seed).sample(sorted(ids), limit))


def choose(candidates: Sequence[Candidate], rounds: Sequence[int], reading: Reading) -> list[Candidate]:
    """The candidates that the round reads, in their order: the same for the same seed.

    Args:
        rounds: numbers of the rounds that ended with a policy.
    """
    train = [c for c in candidates if c.split == "train"]
    new = [c.comparison_id for c in train if c.first_round is None]
    old = [
        c.comparison_id
        for c in train
        if c.first_round is not None
        and (reading.replay_rounds is None or sum(n >= c.first_round for n in rounds) <= reading.replay_rounds)
    ]
    replayed = len(old)
    if reading.replay_share is not None and reading.replay_share < 1:
        # At most so many that replayed / (new + replayed) <= share.
        replayed = min(replayed, math.floor(reading.replay_share / (1 - reading.replay_share) * len(new) + 1e-9))
    fresh = len(new)
    if reading.train_limit is not None and fresh + replayed > reading.train_limit:
        # Both are cut in proportion, rounding in favour of the new.
        replayed = reading.train_limit * replayed // (fresh + replayed)
        fresh = reading.train_limit - replayed
    heldout = [c.comparison_id for c in candidates if c.split == "heldout"]
    kept = draw(new, fresh, reading.seed) | draw(old, replayed, reading.seed)
    kept |= draw(heldout, reading.heldout_limit, reading.seed)
    return [c for c in candidates if c.comparison_id in kept]


def counts(chosen: Sequence[Candidate]) -> dict[str, Any]:
    """What a snapshot of these says of itself; `new` and `earlier` (by number of the round) are of the train ones."""
    train = [c for c in chosen if c.split == "train"]
    earlier = Counter(c.first_round for c in train if c.first_round is not None)
    return {
        "train": len(train),
        "heldout": len(chosen) - len(train),
        "ties": sum(c.winner == 0 for c in chosen),
        "winners": sum(c.winner != 0 for c in train),
        "judgments": sum(c.judgments for c in chosen),
        "new": len(train) - earlier.total(),
        "earlier": {str(number): n for number, n in sorted(earlier.items())},
    }
