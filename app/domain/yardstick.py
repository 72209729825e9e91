"""Best-of-n of the reference model: the yardstick for how much reward a policy gains for its KL (Gao et al. 2022).

Sampling n responses and keeping the one with the highest reward gains reward without any training, at a KL to the
reference of ln n - (n - 1) / n nats. A policy that was trained well lies above that curve. Only what was sampled of the
reference is drawn: no n beyond it, no curve fitted.

An evaluation reports, on the prompts whose responses of the reference are stored:

| metric | what it is |
|---|---|
| `eval_base/scores` | mean score of the reference's responses |
| `eval_base/best_of_2`, `_4`, ... | mean over prompts of the expected best score among so many of its responses |
| `eval_base/n` | responses to each prompt: the largest n |
| `eval_base/prompts` | prompts |
| `eval_base/gain`, `_low`, `_high` | the new policy's mean score less the reference's, with its 95% interval |
"""

from collections.abc import Mapping, Sequence
from math import comb, log, sqrt
from statistics import mean
from typing import NamedTuple

from app.domain.intervals import Interval, mean_interval

MOST = 16  # responses to a prompt that are scored
LEAST = 2


def sizes(most: int) -> list[int]:
    """The n that are looked at: 1, 2, 4, ... and the largest."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


NAMES = {n: "eval_base/scores" if n == 1 else f"eval_base/best_of_{n}" for n in range(1, MOST + 1)}
GAIN = "eval_base/gain"
METRICS = (*NAMES.values(), "eval_base/n", "eval_base/prompts", GAIN, f"{GAIN}_low", f"{GAIN}_high")


class Point(NamedTuple):
    """Best-of-n: its KL to the reference in nats, and its mean reward less the reference's."""

    n: int
    kl: float
    gain: float


class Yardstick(NamedTuple):
    """Both on the same prompts, by one reward model.

    Attributes:
        points: of best-of-n, by rising n from 1, which is the reference itself.
        gain: the new policy's mean reward less the reference's.
        interval: of the gain; none for fewer than five prompts.
    """

    points: list[Point]
    gain: float
    interval: Interval | None
    prompts: int

    @property
    def n(self) -> int:
        return self.points[-1].n

    def at(self, kl: float) -> float | None:
        """What best-of-n gains at this KL, between the points that were measured; None beyond the last one."""
        for left, right in zip(self.points, self.points[1:], strict=False):
            if left.kl <= kl <= right.kl:
                # The curve is drawn over sqrt(KL), so it is read there.
                share = (sqrt(kl) - sqrt(left.kl)) / (sqrt(right.kl) - sqrt(left.kl))
                return left.gain + share * (right.gain - left.gain)
        return None


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best of n responses to what they were sampled from, at most: ln n - (n - 1) / n.

    An upper bound, exact without ties (Gao et al. 2022, section 2; Beirami et al. 2024).
    """
    return log(n) - (n - 1) / n


def expected_best(scores: Sequence[float], n: int) -> float:
    """Mean of the best score among n of these, over all choices of n: no luck in which come first.

    The i-th smallest of N is the best in C(i - 1, n - 1) of C(N, n) choices.

    Raises:
        ValueError: there are fewer than n.
    """
    if not 1 <= n <= len(scores):
        raise ValueError(f"{len(scores)} scores have no best of {n}")
    ordered = sorted(scores)
    return sum(comb(i, n - 1) * score for i, score in enumerate(ordered)) / comb(len(ordered), n)


def enough(counts: Sequence[int]) -> int:
    """Responses to each prompt that are used: as many as half of the prompts with two or more have, at most `MOST`.

    Prompts with fewer are left out, and of others the first ones are used. 0 where no prompt has two.
    """
    several = sorted((count for count in counts if count >= LEAST), reverse=True)
    return min(several[(len(several) - 1) // 2], MOST) if several else 0


def measure(base: Mapping[int, Sequence[float]], new: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """The table above; empty without two responses of the reference to a prompt.

    Args:
        base, new: scores of both models' responses, by prompt; `new` has each prompt of `base`.
    """
    n = enough([len(scores) for scores in base.values()])
    used = {prompt: list(scores)[:n] for prompt, scores in base.items() if len(scores) >= n}
    if not n:
        return {}
    values = {NAMES[m]: mean(expected_best(scores, m) for scores in used.values()) for m in sizes(n)}
    gains = [mean(new[prompt]) - mean(scores) for prompt, scores in used.items()]
    values |= {"eval_base/n": float(n), "eval_base/prompts": float(len(used)), GAIN: mean(gains)}
    if interval := mean_interval(gains):
        values |= {f"{GAIN}_low": interval.low, f"{GAIN}_high": interval.high}
    return values


def yardstick(metrics: Mapping[str, float]) -> Yardstick | None:
    """What an evaluation's metrics say of it; none where it was not measured."""
    if GAIN not in metrics or "eval_base/n" not in metrics:
        return None
    base = metrics[NAMES[1]]
    points = [Point(n, best_of_n_kl(n), metrics[name] - base) for n, name in NAMES.items() if name in metrics]
    bounds = [metrics.get(f"{GAIN}{end}") for end in ("_low", "_high")]
    low, high = bounds
    interval = Interval(metrics[GAIN], low, high) if low is not None and high is not None else None
    return Yardstick(points, metrics[GAIN], interval, int(metrics["eval_base/prompts"]))
