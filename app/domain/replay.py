"""Select the comparisons that a round reads: all new ones, and a chosen number of those from earlier rounds.

A comparison is new until a round that ended with a policy has read it. Reading it later is a replay. Its age is the
number of rounds with a policy since then, including the round that read it first.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Reading(NamedTuple):
    """A round's limits for reading comparisons; None means no limit."""

    train_limit: int | None = None
    heldout_limit: int | None = None
    replay_share: float | None = None  # of the training comparisons, at most this share may be replayed
    replay_rounds: int | None = None  # replay only comparisons of at most this age
    seed: int = 0


class Candidates(NamedTuple):
    """N decided comparisons as arrays (N,), so that a million of them take only megabytes."""

    comparison: Ints  # ids
    heldout: Ints  # 1 if it is never trained on
    winner: Ints  # -1 for A, 0 for a tie, 1 for B: app.domain.consensus.winner
    judgments: Ints
    first_round: Ints  # number of the round that read it first; 0: it is new


def draw(ids: Ints, limit: int | None, seed: int) -> Ints:
    """Draw at most `limit` of the ids at random with this seed."""
    if limit is None or len(ids) <= limit:
        return ids
    return np.array(random.Random(seed).sample(sorted(ids.tolist()), limit), np.int64)


def choose(candidates: Candidates, rounds: Sequence[int], reading: Reading) -> Candidates:
    """Choose the candidates that the round reads, in their order; the same seed gives the same choice.

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
        # The largest number with replayed / (new + replayed) <= share.
        replayed = min(replayed, math.floor(reading.replay_share / (1 - reading.replay_share) * len(new) + 1e-9))
    fresh = len(new)
    if reading.train_limit is not None and fresh + replayed > reading.train_limit:
        # Both are reduced in proportion; rounding favors new comparisons.
        replayed = reading.train_limit * replayed // (fresh + replayed)
        fresh = reading.train_limit - replayed
    heldout = draw(ids[~train], reading.heldout_limit, reading.seed)
    kept = [draw(new, fresh, reading.seed), draw(old, replayed, reading.seed), heldout]
    is_kept = np.isin(ids, np.concatenate(kept))
    return Candidates(*(column[is_kept] for column in candidates))


def counts(chosen: Candidates) -> dict[str, Any]:
    """Return the counts for a snapshot's description; `new` and `earlier` (by round) count training comparisons."""
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
