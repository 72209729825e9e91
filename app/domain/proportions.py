"""Intervals for shares, such as a win rate."""

from math import sqrt

Z_95 = 1.959964


def wilson(successes: float, n: float, z: float = Z_95) -> tuple[float, float] | None:
    """Return the Wilson score interval of a share (Wilson 1927); None if n is 0.

    Unlike the normal approximation, it stays within [0, 1] and is usable for a handful of cases. `successes` may
    include halves for ties.
    """
    if n == 0:
        return None
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # For a share of 0 or 1, the bound is exactly 0 or 1; rounding must not exceed it.
    return max(0.0, centre - half), min(1.0, centre + half)
