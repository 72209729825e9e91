"""Which pairs of responses to ask people about.

Pure and seeded: the same samples and seed give the same pairs, so a resumed run opens what the first one would have.
Two responses with the same text are never a pair: there is nothing to prefer.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple


class Sample(NamedTuple):
    """A response that may be shown: its completion's id and its text."""

    id: int
    text: str


Pair = tuple[int, int]


def pairs_within(samples: Sequence[Sample], limit: int, seed: int) -> list[Pair]:
    """At most `limit` pairs among one prompt's samples, spread so that each is in about as many pairs as any other.

    Of samples with the same text only the one with the lowest id takes part. Ids stand in ascending order in a pair.
    """
    ids = [sample.id for sample in _distinct(samples)]
    random.Random(seed).shuffle(ids)
    return list(islice(_tournament(ids), limit))


def pairs_across(new: Sequence[Sample], old: Sequence[Sample], limit: int, seed: int) -> list[Pair]:
    """At most `limit` pairs of a new policy's sample with an older one's, spread over both; only where texts differ.

    Ids stand in ascending order in a pair; which side is shown first is drawn for each labeler.
    """
    news, olds = _distinct(new), _distinct(old)
    order = random.Random(seed)
    order.shuffle(news)
    order.shuffle(olds)
    met = ((a, olds[(i + shift) % len(olds)]) for shift in range(len(olds)) for i, a in enumerate(news))
    different = ((min(a.id, b.id), max(a.id, b.id)) for a, b in met if a.text.strip() != b.text.strip())
    return list(islice(different, limit))


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    first: dict[str, Sample] = {}
    for sample in sorted(samples):
        first.setdefault(sample.text.strip(), sample)
    return sorted(first.values())


def _tournament(ids: Sequence[int]) -> Iterator[Pair]:
    """All pairs in the order of a round-robin tournament (circle method): nobody plays twice before all have played."""
    players: list[int | None] = [*ids, *([None] if len(ids) % 2 else [])]  # with an odd number, one pauses
    for _ in range(len(players) - 1):
        for i in range(len(players) // 2):
            a, b = players[i], players[-1 - i]
            if a is not None and b is not None:
                yield min(a, b), max(a, b)
        players.insert(1, players.pop())
