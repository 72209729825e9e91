"""The win rate of one policy against another under a known preference, with its interval."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from app.simulation.preference import Score


class WinRate(NamedTuple):
    """Share of comparisons won (a tie counts half), with a 95% interval; `prompts` is what the interval rests on."""

    rate: float
    low: float
    high: float
    prompts: int


def win_rate(
    score: Score,
    questions: Mapping[int, str],
    new: Mapping[int, Sequence[str]],
    old: Mapping[int, Sequence[str]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRate | None:
    """Every response of `new` against every one of `old` to the same prompt; none when they share no prompt.

    The interval is a percentile bootstrap over prompts, not over pairs: answers to one prompt are alike, and only other
    prompts tell how the policy does elsewhere.
    """
    shares = []
    for prompt in sorted(new.keys() & old.keys()):
        a = np.array([score(questions[prompt], text) for text in new[prompt]])
        b = np.array([score(questions[prompt], text) for text in old[prompt]])
        difference = a[:, None] - b[None, :]
        shares.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    if not shares:
        return None
    values = np.array(shares)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return WinRate(float(values.mean()), float(low), float(high), len(values))
