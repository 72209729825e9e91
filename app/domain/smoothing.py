"""Moving averages of training curves."""

from collections.abc import Sequence

LEAST_TO_SMOOTH = 20  # points of a curve: the average of fewer hides what the points show
WEIGHT = 0.9  # of what came before, in the average


def moving_average(values: Sequence[float], weight: float = WEIGHT) -> list[float]:
    """Return the exponential moving average at each value.

    The sum is divided by the sum of its weights (Kingma and Ba 2015, section 3), so the first values do not pull the
    average towards zero.
    """
    averages, total, weights = [], 0.0, 0.0
    for value in values:
        total, weights = weight * total + (1 - weight) * value, weight * weights + (1 - weight)
        averages.append(total / weights)
    return averages
