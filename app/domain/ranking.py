"""A ranking of k responses and the k(k-1)/2 preferences that it implies.

Rank 1 is the best and equal ranks are ties. None means unranked: below every ranked response, and not compared with
other unranked responses.
"""

from collections.abc import Mapping, Sequence


def preference(rank_a: int | None, rank_b: int | None) -> int | None:
    """Return the preference towards B: -1, 0 (a tie) or 1; None if neither is ranked."""
    if rank_a is None or rank_b is None:
        return None if rank_a is rank_b else 1 if rank_a is None else -1
    return (rank_a > rank_b) - (rank_a < rank_b)


def ranks(items: Sequence[int], pairs: Mapping[tuple[int, int], int | None]) -> list[int | None]:
    """Return the ranks that imply these preferences, from 1 without gaps; the inverse of `preference`.

    A single unranked response looks like a response ranked last, so it gets the last rank.

    Args:
        items: the ranked responses.
        pairs: (a, b) -> preference towards b, each pair in one of its two orders.
    """
    unranked = {item for pair, said in pairs.items() if said is None for item in pair}
    beaten_by = dict.fromkeys(items, 0)
    for (a, b), said in pairs.items():
        if said:
            beaten_by[a if said > 0 else b] += 1
    order = sorted({beaten_by[item] for item in items if item not in unranked})
    return [None if item in unranked else order.index(beaten_by[item]) + 1 for item in items]
