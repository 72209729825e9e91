"""Do people prefer one policy to another? A confidence sequence, which may be checked after every judgment.

Each prompt gives one value: the share of its judgments for the new policy, a tie counting one half. A gambler bets on
the values, one after the other, against the claim that their mean is m. The gambler's capital is evidence against m: if
m is true, it ever exceeds 1 / alpha with probability at most alpha (Ville's inequality). The interval consists of the
means that are not refuted. The new policy is better once 1/2 lies below it. This is the hedged capital process of
Waudby-Smith and Ramdas (2024, "Estimating means of bounded random variables by betting", theorem 3), as `ville`
computes it. It needs no model of the values, only that each value has the same mean given the earlier ones.

So the order must not depend on the values themselves, and a value must keep its place. The query that reads them
(`app.rounds.result_queries.evaluated`) ensures this: a prompt enters at the end when it has its last requested
judgment. If an answer is changed or withdrawn later, the value changes in its place, and the sequence is recomputed
from the start.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from ville import BettingCS, BettingTest, evalues

Word = Literal["better", "not shown", "worse"]
Floats = NDArray[np.float64]

ALPHA = 0.05
EVEN = 0.5
GRID = 1001  # number of means to test, 0.1 percentage points apart; 1/2 is one of them
FEWEST = 5  # minimum prompts for a forecast of how many more are needed
MOST = 1000  # maximum prompts of the forecast
_LARGEST = 700.0  # logarithm of the largest e-value to report, close to the largest float


class Preference(NamedTuple):
    """The result of people's judgments on a new policy against another policy.

    Attributes:
        value: the win rate, which is the mean of the prompts' values.
        low, high: the confidence sequence's current interval, rounded outwards to the grid of tested means.
        prompts: number of values.
        word: better once the interval lies above 1/2, worse once it lies below.
        e_value: evidence that the win rate is not 1/2: 1 means none, 1 / alpha decides.
        e_better: evidence that it is above 1/2, for `preferred` over several policies: the e-value if the new policy is
            ahead, a smaller number if it is not.
        more: number of additional prompts needed for a decision if people continue as before: the values are repeated
            in the same order. None if it is decided, with fewer than `FEWEST` prompts, or if `MOST` more do not decide.
    """

    value: float
    low: float
    high: float
    prompts: int
    word: Word
    e_value: float
    e_better: float
    more: int | None


def preference(values: Sequence[float], alpha: float = ALPHA) -> Preference | None:
    """Return the result for the values of all prompts; None without values.

    Args:
        values: (N,) the prompts' values in the order in which they entered, each in [0, 1]; 1 is for the new policy.
        alpha: maximum probability of ever reporting better or worse for two policies that people like equally.

    Raises:
        ValueError: a value is not in [0, 1].
    """
    return _preference(tuple(values), alpha) if len(values) else None


# Cached, because pages show all rounds of a project and few of them change: 20 rounds took two seconds per page.
@functools.lru_cache(maxsize=2048)
def _preference(values: tuple[float, ...], alpha: float) -> Preference:
    better, worse = capital(values, alpha)
    evidence = hedged(better, worse)
    decided = evidence[-1] >= -np.log(alpha)
    sequence = BettingCS(alpha=alpha, grid=GRID, intersect=False).fit(values)
    low, high = sequence.interval()
    return Preference(
        value=float(np.mean(values)),
        low=low,
        high=high,
        prompts=len(values),
        word="not shown" if not decided else "better" if better[-1] > worse[-1] else "worse",
        e_value=_exp(evidence[-1]),
        e_better=_exp(better[-1] - np.log(2)),
        more=None if decided else _more(values, alpha),
    )


def capital(values: ArrayLike, alpha: float = ALPHA) -> tuple[Floats, Floats]:
    """Return log capital (N,) after each value for two gamblers: one bets on more than 1/2, the other on less."""
    ahead, behind = (BettingTest(EVEN, alternative=side, alpha=alpha).fit(values) for side in ("greater", "less"))
    return ahead.log_e_values_, behind.log_e_values_


def hedged(better: Floats, worse: Floats) -> Floats:
    """Return the logarithm (N,) of the e-value: half is bet on each side, and the larger capital counts."""
    larger: Floats = np.maximum(better, worse) - np.log(2)
    return larger


def preferred(e_better: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Return which of several policies people prefer, by the e-BH procedure (Wang and Ramdas 2022).

    The expected share of policies named wrongly is at most alpha. This holds even though the results are dependent,
    because the policies are compared with the same rival on the same prompts.

    Args:
        e_better: evidence for each policy.
    """
    return [bool(named) for named in evalues.ebh(np.array(e_better, float), alpha)] if e_better else []


def _more(values: Sequence[float], alpha: float) -> int | None:
    n = len(values)
    if n < FEWEST:
        return None
    evidence = hedged(*capital(np.resize(values, n + MOST), alpha))
    hits = np.flatnonzero(evidence[n:] >= -np.log(alpha))
    return int(hits[0]) + 1 if hits.size else None


def _exp(logarithm: float) -> float:
    return float(np.exp(min(logarithm, _LARGEST)))
