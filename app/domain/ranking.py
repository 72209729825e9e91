"""A ranking of k responses and the k(k-1)/2 preferences that it says.

Ranks count from 1, the best; equal ranks tie; None is unranked, which is below every ranked response and not compared
with other unranked ones.
"""

from collections.abc import Mapping, Sequence


def preference(rank_a: int | None, rank_b: int | None) -> int | None:
    """Towards B: -1, 0 (a tie) or 1; None where neither is ranked."""
    if rank_a is None or rank_b is None:
        return None if rank_a is rank_b else 1 if rank_a is None else -1
    return (rank_a > rank_b) - (rank_a < rank_b)


def ranks(items: Sequence[int], pairs: Mapping[tuple[int, int], int | None]) -> list[int | None]:
    """The ranks that say these preferences, 1 to k without gaps; the inverse of `preference`.

    A single unranked response cannot be told from one ranked last, and is given the last rank.

    Args:
        items: what is ranked.
        pairs: (a, b) -> preference towards b, for each pair in one order.
    """
    unranked = {item for pair, said in pairs.items() if said is None for item in pair}
    beaten_by = dict.fromkeys(items, 0)
    for (a, b), said in pairs.items():
        if said:
            beaten_by[a if said > 0 else b] += 1
    order = sorted({beaten_by[item] for item in items if item not in unranked})
    return [None if item in unranked else order.index(beaten_by[item]) + 1 for item in items]
