"""Which comparisons a round reads: all that are new, and of those that earlier rounds have read as many as wanted.

A comparison is new until a round that ended with a policy has read it; from then on it is replayed. Its age is the
number of such rounds since, the one that read it first included.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Reading(NamedTuple):
    """What a round wants to read; none is no limit."""

    train_limit: int | None = None
    heldout_limit: int | None = None
    replay_share: float | None = None  # of the training comparisons, at most this share may be replayed
    replay_rounds: int | None = None  # replay only comparisons of at most this age
    seed: int = 0


class Candidates(NamedTuple):
    """Decided comparisons: arrays (N,), so that a million of them take megabytes."""

    comparison: Ints  # ids
    heldout: Ints  # 1 where it is never trained on
    winner: Ints  # -1 for A, 0 for a tie, 1 for B: app.domain.consensus.winner
    judgments: Ints
    first_round: Ints  # number of the round that read it first; 0: it is new


def draw(ids: Ints, limit: int | None, seed: int) -> Ints:
    """At most `limit` of them, chosen at random by the seed."""
    if limit is None or len(ids) <= limit:
        return ids
    return np.array(random.Random(seed).sample(sorted(ids.tolist()), limit), np.int64)


def choose(candidates: Candidates, rounds: Sequence[int], reading: Reading) -> Candidates:
    """The candidates that the round reads, in their order: the same for the same seed.

    Args:
        rounds: numbers of the rounds that ended with a policy.
    """
    ids, first = candidates.comparison, candidates.first_round
    train = candidates.heldout == 0
    is_old = train & (first > 0)
    if reading.replay_rounds is not None:
        age = len(rounds) - np.searchsorted(np.sort(rounds), first)
        is_old &= age <= reading.replay_rounds
    new, old = ids[train & (first == 0)], ids[is_old]
    replayed = len(old)
    if reading.replay_share is not None and reading.replay_share < 1:
        # At most so many that replayed / (new + replayed) <= share.
        replayed = min(replayed, math.floor(reading.replay_share / (1 - reading.replay_share) * len(new) + 1e-9))
    fresh = len(new)
    if reading.train_limit is not None and fresh + replayed > reading.train_limit:
        # Both are cut in proportion, rounding in favour of the new.
        replayed = reading.train_limit * replayed // (fresh + replayed)
        fresh = reading.train_limit - replayed
    heldout = draw(ids[~train], reading.heldout_limit, reading.seed)
    kept = [draw(new, fresh, reading.seed), draw(old, replayed, reading.seed), heldout]
    is_kept = np.isin(ids, np.concatenate(kept))
    return Candidates(*(column[is_kept] for column in candidates))


def counts(chosen: Candidates) -> dict[str, Any]:
    """What a snapshot of these says of itself; `new` and `earlier` (by number of the round) are of the train ones."""
    train = chosen.heldout == 0
    first = chosen.first_round[train]
    numbers, times = np.unique(first[first > 0], return_counts=True)
    return {
        "train": int(train.sum()),
        "heldout": int((~train).sum()),
        "ties": int((chosen.winner == 0).sum()),
        "winners": int((chosen.winner[train] != 0).sum()),
        "judgments": int(chosen.judgments.sum()),
        "new": int((first == 0).sum()),
        "earlier": {str(number): n for number, n in zip(numbers.tolist(), times.tolist(), strict=True)},
    }
