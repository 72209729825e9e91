"""Whether people prefer one policy to another, told so that one may look after every judgment.

Each prompt gives one value: the share of its judgments that are for the new policy, a tie counting one half. A gambler
bets on the values, one after the other, against the claim that their mean is m; what the gambler holds is evidence
against m, and exceeds 1 / alpha at any time with probability alpha at most if m is true (Ville's inequality). The
means that are not refuted are the interval; the new policy is better once 1/2 lies below it. This is the hedged capital
process of Waudby-Smith and Ramdas (2024, "Estimating means of bounded random variables by betting", theorem 3), as
`ville` computes it. It needs no model of the values, only that each, given those before it, has the same mean.

So the order of the values must not depend on what they say, and a value that has entered must keep its place. Who
reads them from the database (`app.rounds.result_queries.evaluated`) keeps to that: a prompt enters when the last
judgment that is wanted of it has come, behind all that entered before. An answer that is changed or taken back later
changes the value in its place, and the sequence is recomputed from the first value.
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
GRID = 1001  # means that are tried, 0.1 points apart; 1/2 is one of them
FEWEST = 5  # prompts: from fewer, nothing is said of how many more it takes
MOST = 1000  # prompts that are looked ahead
_LARGEST = 700.0  # logarithm of the largest e-value that is told: a float holds no much larger one


class Preference(NamedTuple):
    """What people's judgments say of a new policy beside another one.

    Attributes:
        value: the win rate: the mean of the prompts' values.
        low, high: the confidence sequence's interval at this moment, widened to the next mean that was tried.
        prompts: values behind it.
        word: better once the interval lies above 1/2, worse once it lies below.
        e_value: evidence that the win rate is not 1/2: 1 is none, 1 / alpha decides.
        e_better: evidence that it is above 1/2, for `preferred` over several policies: the e-value where the new policy
            is ahead, less where it is not.
        more: how many more prompts it takes to decide if people go on as they did so far: their values are taken again
            in the same order. None where it is decided, for fewer than `FEWEST` prompts, and where `MOST` more do not
            decide it.
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
    """What the values say together; none where there are none.

    Args:
        values: (N,) of the prompts in the order in which they entered, each in [0, 1], 1 being for the new policy.
        alpha: probability at most of ever saying better or worse of two policies that people like equally.

    Raises:
        ValueError: a value is not in [0, 1].
    """
    return _preference(tuple(values), alpha) if len(values) else None


# Pages ask for all rounds of a project again and again, and few of them change: 20 rounds took two seconds a page.
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
    """(N,) logarithms of what the two gamblers hold after each value: who bets on more than 1/2, and who on less."""
    ahead, behind = (BettingTest(EVEN, alternative=side, alpha=alpha).fit(values) for side in ("greater", "less"))
    return ahead.log_e_values_, behind.log_e_values_


def hedged(better: Floats, worse: Floats) -> Floats:
    """(N,) logarithm of the e-value: half is bet on each side, and the better half counts."""
    larger: Floats = np.maximum(better, worse) - np.log(2)
    return larger


def preferred(e_better: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which of several policies people prefer, by the e-BH procedure (Wang and Ramdas 2022).

    At most a share alpha of the policies it names is expected not to be preferred. That holds although the policies are
    compared with the same rival on the same prompts, and so depend on one another.

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
