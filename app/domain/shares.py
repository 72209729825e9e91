"""Dividing a number among kinds by shares, which are relative to one another."""

import random
from collections.abc import Mapping


def slots(shares: Mapping[str, float], n: int, seed: int) -> list[str]:
    """The kind of each of n slots, in the shares' order: systematic sampling, so that over many seeds each kind gets
    exactly its share, and for one seed never a slot more or less than its share rounded up or down.

    Raises:
        ValueError: no share is above 0.
    """
    total = sum(shares.values())
    if total <= 0:
        raise ValueError("At least one share must be above 0.")
    offset = random.Random(f"slots {seed}").random()  # a stream of its own: others shuffle by the same seed
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
    """How many to take of each kind, n in all: in proportion to the shares, and where a kind has too few, more of the
    others. Kinds without a share are not taken. Returns fewer than n if there are no more.
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
        # What is left over by rounding goes to the largest remainders, in the order given where they are equal.
        by_remainder = sorted(open_, key=lambda kind: whole[kind] - exact[kind])
        for kind in [kind for kind in by_remainder if open_[kind] > 0][: left - sum(whole.values())]:
            whole[kind] += 1
        for kind, part in whole.items():
            part = min(part, available[kind] - taken[kind])
            taken[kind] += part
            left -= part
    return taken
