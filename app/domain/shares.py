"""Divide a number among kinds in proportion to relative shares."""

import random
from collections.abc import Mapping


def slots(shares: Mapping[str, float], n: int, seed: int) -> list[str]:
    """Return the kind of each of n slots, in the order of the shares, by systematic sampling.

    Over many seeds, each kind gets exactly its share. For one seed, it gets its share rounded up or down.

    Raises:
        ValueError: no share is above 0.
    """
    total = sum(shares.values())
    if total <= 0:
        raise ValueError("At least one share must be above 0.")
    offset = random.Random(f"slots {seed}").random()  # a separate stream, because others shuffle with the same seed
    points = [(i + offset) / n * total for i in range(n)]
    found: list[str] = []
    upper = 0.0
    for kind, share in shares.items():
        upper += share
        while len(found) < n and share > 0 and points[len(found)] < upper:
            found.append(kind)
    # A sum of floats may end just below the last point.
    last = [kind for kind, share in shares.items() if share > 0][-1]
    return found + [last] * (n - len(found))


def quotas(available: Mapping[str, int], shares: Mapping[str, float], n: int) -> dict[str, int]:
    """Return how many items to take of each kind, n in total, in proportion to the shares.

    If a kind has too few items, more of the others are taken. Kinds without a share are not taken. The total is smaller
    than n if there are not enough items.
    """
    taken = dict.fromkeys(available, 0)
    left = n
    while left > 0:
        open_ = {kind: shares.get(kind, 0) for kind in available if taken[kind] < available[kind]}
        total = sum(open_.values())
        if total <= 0:
            break
        exact = {kind: left * share / total for kind, share in open_.items()}
        whole = {kind: int(part) for kind, part in exact.items()}
        # The rounding remainder goes to the kinds with the largest remainders; equal remainders in the order given.
        by_remainder = sorted(open_, key=lambda kind: whole[kind] - exact[kind])
        for kind in [kind for kind in by_remainder if open_[kind] > 0][: left - sum(whole.values())]:
            whole[kind] += 1
        for kind, part in whole.items():
            part = min(part, available[kind] - taken[kind])
            taken[kind] += part
            left -= part
    return taken
