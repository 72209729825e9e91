"""Metrics of a reward model from its differences d = r_chosen - r_rejected on held-out pairs.

All functions take d (B,) without margins and on the scale that Bradley-Terry fits, before rewards are normalised. A
metric is None if no pair qualifies for it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MATCHED = 0.1  # two lengths are similar if they differ by at most this share of the longer one


def accuracy(differences: Tensor) -> Tensor:
    """Return the share () of differences (B,) above 0; a difference of 0 counts one half."""
    return _correct(differences).mean()


def _correct(differences: Tensor) -> Tensor:
    return (differences > 0).float() + 0.5 * (differences == 0).float()


# ---- calibration -----------------------------------------------------------------------------------------------------


class ReliabilityBin(NamedTuple):
    """A bin of the reliability diagram: mean confidence, share of pairs that people decided like the model, pairs."""

    confidence: float
    accuracy: float
    pairs: int


def reliability_diagram(differences: Tensor, bins: int = 15) -> list[ReliabilityBin]:
    """Return the non-empty bins of d (B,), by rising confidence (Guo et al. 2017).

    Confidence is s(|d|), in [0.5, 1], divided into equal bins (lower, upper]; d = 0 is half correct.
    """
    d = differences.detach().double().cpu()
    confidence, correct = torch.sigmoid(d.abs()), _correct(d).double()
    index = (((confidence - 0.5) / 0.5 * bins).ceil().long() - 1).clamp(0, bins - 1)
    diagram = []
    for i in index.unique().tolist():
        members = index == i
        diagram.append(
            ReliabilityBin(confidence[members].mean().item(), correct[members].mean().item(), int(members.sum()))
        )
    return diagram


def expected_calibration_error(differences: Tensor, bins: int = 15) -> Tensor:
    """Return the ECE () of d (B,): sum over bins of n_b / n * |accuracy_b - confidence_b| (Guo et al. 2017)."""
    gaps = [abs(b.accuracy - b.confidence) * b.pairs for b in reliability_diagram(differences, bins)]
    return torch.tensor(sum(gaps) / len(differences), dtype=torch.double)


# ---- length ----------------------------------------------------------------------------------------------------------


def length_bias(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """Return how much more often the model prefers the longer response than people do, in [-1, 1], shape ().

    Only pairs whose lengths in tokens differ count. If the model's d is 0, it counts as one half.
    """
    differ = chosen_lengths != rejected_lengths
    if not differ.any():
        return None
    chosen_is_longer = (chosen_lengths > rejected_lengths)[differ]
    d = differences[differ]
    towards_longer = torch.where(chosen_is_longer, d, -d)
    return accuracy(towards_longer) - chosen_is_longer.float().mean()


def length_slope(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """Return the least-squares slope () of d (B,) on the length difference, in nats per 100 tokens.

    The length difference is chosen minus rejected. The intercept absorbs the quality gap between chosen and rejected,
    so the slope is the effect of length alone. None if all pairs have the same length difference.
    """
    x = (chosen_lengths - rejected_lengths).double()
    x = (x - x.mean()) / 100  # subtract first: equal whole numbers then give exactly 0
    if not x.any():
        return None
    # b = sum (x - mean x) d / sum (x - mean x)^2
    return (x * differences.double()).sum() / (x**2).sum()


def matched_length_accuracy(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """Return the accuracy () on pairs of similar length, where length alone cannot decide."""
    alike = alike_in_length(chosen_lengths, rejected_lengths)
    return accuracy(differences[alike]) if alike.any() else None


def alike_in_length(chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor:
    """Return which pairs (B,) have responses of similar length."""
    longer = torch.maximum(chosen_lengths, rejected_lengths)
    return (chosen_lengths - rejected_lengths).abs() <= MATCHED * longer


def longer_preferred(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> list[float | None]:
    """Return for each pair whether the model prefers the longer response, minus whether people do.

    None for a pair with equal lengths. The mean of the others is `length_bias`.
    """
    chosen_is_longer = (chosen_lengths > rejected_lengths).double()
    right = _correct(differences).double()
    value = torch.where(chosen_is_longer > 0, right, 1 - right) - chosen_is_longer
    same = (chosen_lengths == rejected_lengths).tolist()
    return [None if alike else each for alike, each in zip(same, value.tolist(), strict=True)]


# ---- separability ----------------------------------------------------------------------------------------------------


def separability(differences: Tensor) -> Tensor | None:
    """Return Cohen's d_z (): the mean of d (B,) divided by its standard deviation.

    This is the paired effect size, because rewards of different prompts are not comparable. It does not depend on the
    scale of the rewards, so it can compare models and kinds of pairs (easy, hard). None for fewer than two pairs or if
    all d are equal.
    """
    if len(differences) < 2:
        return None
    deviation = differences.double().std()  # exactly 0 for equal numbers
    return differences.mean() / deviation if deviation > 0 else None
