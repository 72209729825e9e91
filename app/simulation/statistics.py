"""Win rates of one policy against another under a known preference, with intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from app.simulation.preference import Score


class WinRate(NamedTuple):
    """Share of comparisons won (a tie counts half), with a 95% interval over `prompts` prompts."""

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
    """Compare all responses of `new` with all of `old` to the same prompts; None if they share no prompt.

    The interval is a percentile bootstrap over prompts, not over pairs: answers to one prompt are similar, and the
    interval should cover other prompts.
    """
    shares = win_shares(score, questions, new, old)
    return interval([list(shares.values())], resamples=resamples, seed=seed) if shares else None


def win_shares(
    score: Score, questions: Mapping[int, str], new: Mapping[int, Sequence[str]], old: Mapping[int, Sequence[str]]
) -> dict[int, float]:
    """Return the share of comparisons that `new` wins for each prompt that both answer; a tie counts half."""
    shares = {}
    for prompt in sorted(new.keys() & old.keys()):
        a = np.array([score(questions[prompt], text) for text in new[prompt]])
        b = np.array([score(questions[prompt], text) for text in old[prompt]])
        difference = a[:, None] - b[None, :]
        shares[prompt] = float((difference > 0).mean() + 0.5 * (difference == 0).mean())
    return shares


def mean_score(score: Score, questions: Mapping[int, str], texts: Mapping[int, Sequence[str]]) -> float:
    """Return the mean over prompts of the mean score of their responses."""
    means = [np.mean([score(questions[prompt], text) for text in said]) for prompt, said in texts.items()]
    return float(np.mean(means))


def interval(shares: Sequence[Sequence[float]], *, resamples: int = 10_000, seed: int = 0) -> WinRate:
    """Return the mean of win shares (S, P) of S runs on the same P prompts, with a percentile bootstrap.

    Runs and prompts are resampled independently (Owen 2007, the pigeonhole bootstrap). With one run, the interval is
    only over prompts.
    """
    values = np.array(shares)
    generator = np.random.default_rng(seed)
    prompts = generator.integers(0, values.shape[1], size=(resamples, values.shape[1]))
    runs = generator.integers(0, len(values), size=(resamples, len(values)))
    means = np.array([values[r][:, p].mean() for r, p in zip(runs, prompts, strict=True)])
    low, high = np.quantile(means, [0.025, 0.975])
    return WinRate(float(values.mean()), float(low), float(high), values.shape[1])
