"""Intervals for shares, such as a win rate."""

from math import sqrt

Z_95 = 1.959964


def wilson(successes: float, n: float, z: float = Z_95) -> tuple[float, float] | None:
    """The Wilson score interval of a share (Wilson 1927); None for nothing counted.

    Unlike the normal approximation it stays within [0, 1] and is sensible for a handful of cases. `successes` may hold
    halves, for ties.
    """
    if n == 0:
        return None
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At a share of 0 or 1 the bound is exactly that; rounding must not push it out.
    return max(0.0, centre - half), min(1.0, centre + half)
