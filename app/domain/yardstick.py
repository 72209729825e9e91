"""Best-of-n of the reference model: the yardstick for how much reward a policy gains for its KL (Gao et al. 2022).

Sampling n responses and keeping the one with the highest reward gains reward without any training, at a KL to the
reference of ln n - (n - 1) / n nats. A well-trained policy lies above this curve. The curve uses only stored samples of
the reference: it has no larger n, and it is not fitted.

An evaluation reports, on the prompts with stored responses of the reference:

| metric | what it is |
|---|---|
| `eval_base/scores` | mean score of the reference's responses |
| `eval_base/best_of_2`, `_4`, ... | mean over prompts of the expected best score among 2, 4, ... of its responses |
| `eval_base/n` | responses per prompt: the largest n |
| `eval_base/prompts` | prompts |
| `eval_base/gain`, `_low`, `_high` | the new policy's mean score minus the reference's, with its 95% interval |
"""

from collections.abc import Mapping, Sequence
from math import comb, log, sqrt
from statistics import mean
from typing import NamedTuple

from app.domain.intervals import Interval, mean_interval

MOST = 16  # maximum responses per prompt to score
LEAST = 2


def sizes(most: int) -> list[int]:
    """Return the values of n to report: 1, 2, 4, ... and the largest."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


NAMES = {n: "eval_base/scores" if n == 1 else f"eval_base/best_of_{n}" for n in range(1, MOST + 1)}
GAIN = "eval_base/gain"
METRICS = (*NAMES.values(), "eval_base/n", "eval_base/prompts", GAIN, f"{GAIN}_low", f"{GAIN}_high")


class Point(NamedTuple):
    """Best-of-n: its KL to the reference in nats, and its mean reward minus the reference's."""

    n: int
    kl: float
    gain: float


class Yardstick(NamedTuple):
    """Best-of-n and the new policy on the same prompts, by the same reward model.

    Attributes:
        points: best-of-n by rising n, from 1, which is the reference itself.
        gain: the new policy's mean reward minus the reference's.
        interval: interval of the gain; None for fewer than five prompts.
    """

    points: list[Point]
    gain: float
    interval: Interval | None
    prompts: int

    @property
    def n(self) -> int:
        return self.points[-1].n

    def at(self, kl: float) -> float | None:
        """Interpolate the gain of best-of-n at this KL between measured points; None beyond the last point."""
        for left, right in zip(self.points, self.points[1:], strict=False):
            if left.kl <= kl <= right.kl:
                # Interpolate over sqrt(KL), the axis on which the curve is drawn.
                share = (sqrt(kl) - sqrt(left.kl)) / (sqrt(right.kl) - sqrt(left.kl))
                return left.gain + share * (right.gain - left.gain)
        return None


def best_of_n_kl(n: int) -> float:
    """Return the KL in nats from best-of-n to the model that was sampled: ln n - (n - 1) / n.

    This is an upper bound, exact without ties (Gao et al. 2022, section 2; Beirami et al. 2024).
    """
    return log(n) - (n - 1) / n


def expected_best(scores: Sequence[float], n: int) -> float:
    """Return the mean of the best score over all choices of n scores, which does not depend on their order.

    The i-th smallest of N scores is the best in C(i - 1, n - 1) of C(N, n) choices.

    Raises:
        ValueError: there are fewer than n scores.
    """
    if not 1 <= n <= len(scores):
        raise ValueError(f"{len(scores)} scores have no best of {n}")
    ordered = sorted(scores)
    return sum(comb(i, n - 1) * score for i, score in enumerate(ordered)) / comb(len(ordered), n)


def enough(counts: Sequence[int]) -> int:
    """Return the number of responses per prompt to use, at most `MOST`.

    At least half of the prompts with two or more responses have this many. Prompts with fewer are left out; of the
    other prompts, the first responses are used. 0 if no prompt has two responses.
    """
    several = sorted((count for count in counts if count >= LEAST), reverse=True)
    return min(several[(len(several) - 1) // 2], MOST) if several else 0


def measure(base: Mapping[int, Sequence[float]], new: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Return the metrics of the table above; empty if no prompt has two responses of the reference.

    Args:
        base, new: scores of both models' responses, by prompt; `new` has all prompts of `base`.
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
    """Return the yardstick from an evaluation's metrics; None if it was not measured."""
    if GAIN not in metrics or "eval_base/n" not in metrics:
        return None
    base = metrics[NAMES[1]]
    points = [Point(n, best_of_n_kl(n), metrics[name] - base) for n, name in NAMES.items() if name in metrics]
    bounds = [metrics.get(f"{GAIN}{end}") for end in ("_low", "_high")]
    low, high = bounds
    interval = Interval(metrics[GAIN], low, high) if low is not None and high is not None else None
    return Yardstick(points, metrics[GAIN], interval, int(metrics["eval_base/prompts"]))
