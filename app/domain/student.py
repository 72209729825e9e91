"""Student's t distribution."""

import math
from statistics import NormalDist


def quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t (Hill 1970, CACM algorithm 396): six digits from four degrees of freedom on.

    Args:
        probability: above 0.5 and below 1.
        degrees: degrees of freedom, at least 1; 1 and 2 use closed forms.
    """
    p, n = 2 * (1 - probability), float(degrees)
    if degrees == 1:
        return 1 / math.tan(p * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2 / (p * (2 - p)) - 2)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * p) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(p / 2)
        y = x**2
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y**2)
    else:
        e = 1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)
        y = (e * y - 1) * (n + 1) / (n + 2) + 1 / y
    return math.sqrt(n * y)
