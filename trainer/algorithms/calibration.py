"""What a reward model's differences d = r_chosen - r_rejected on held-out pairs say of it.

All take d (B,) without margins and on the scale Bradley-Terry fits, before rewards are normalised. What cannot be
measured (no pair qualifies) is None.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MATCHED = 0.1  # lengths that differ by at most this share of the longer one are alike


def accuracy(differences: Tensor) -> Tensor:
    """Share () of d (B,) above 0; 0 counts one half."""
    return _correct(differences).mean()


def _correct(differences: Tensor) -> Tensor:
    return (differences > 0).float() + 0.5 * (differences == 0).float()


# ---- calibration -----------------------------------------------------------------------------------------------------


class ReliabilityBin(NamedTuple):
    """A bar of the reliability diagram: its pairs' mean confidence, the share people decided alike, their number."""

    confidence: float
    accuracy: float
    pairs: int


def reliability_diagram(differences: Tensor, bins: int = 15) -> list[ReliabilityBin]:
    """The bins of d (B,) that hold pairs, by rising confidence (Guo et al. 2017).

    Confidence is s(|d|), in [0.5, 1], cut into equal bins (lower, upper]; d = 0 is half correct.
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
    """ECE () of d (B,): sum over bins of n_b / n * |accuracy_b - confidence_b| (Guo et al. 2017)."""
    gaps = [abs(b.accuracy - b.confidence) * b.pairs for b in reliability_diagram(differences, bins)]
    return torch.tensor(sum(gaps) / len(differences), dtype=torch.double)


# ---- length ----------------------------------------------------------------------------------------------------------


def length_bias(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """How much more often the model prefers the longer response than people do: a difference of shares () in [-1, 1].

    Over pairs (B,) whose lengths in tokens differ. A model's d = 0 counts one half.
    """
    differ = chosen_lengths != rejected_lengths
    if not differ.any():
        return None
    chosen_is_longer = (chosen_lengths > rejected_lengths)[differ]
    d = differences[differ]
    towards_longer = torch.where(chosen_is_longer, d, -d)
    return accuracy(towards_longer) - chosen_is_longer.float().mean()


def length_slope(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """Least-squares slope () of d (B,) on the length difference, chosen less rejected, in nats per 100 tokens.

    With an intercept, which takes up that chosen is better: the slope is what length adds to that. None where all
    pairs differ by the same length.
    """
    x = (chosen_lengths - rejected_lengths).double()
    x = (x - x.mean()) / 100  # in this order: whole numbers that are all alike leave exactly nothing
    if not x.any():
        return None
    # b = sum (x - mean x) d / sum (x - mean x)^2
    return (x * differences.double()).sum() / (x**2).sum()


def matched_length_accuracy(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """Accuracy () on pairs of like length, which length alone cannot tell apart."""
    alike = alike_in_length(chosen_lengths, rejected_lengths)
    return accuracy(differences[alike]) if alike.any() else None


def alike_in_length(chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor:
    """Which pairs (B,) are of like length."""
    longer = torch.maximum(chosen_lengths, rejected_lengths)
    return (chosen_lengths - rejected_lengths).abs() <= MATCHED * longer


def longer_preferred(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> list[float | None]:
    """For each pair (B,) whether the model prefers the longer response, less whether people do; their mean is
    `length_bias`. None where both are of one length."""
    chosen_is_longer = (chosen_lengths > rejected_lengths).double()
    right = _correct(differences).double()
    value = torch.where(chosen_is_longer > 0, right, 1 - right) - chosen_is_longer
    same = (chosen_lengths == rejected_lengths).tolist()
    return [None if alike else each for alike, each in zip(same, value.tolist(), strict=True)]


# ---- separability ----------------------------------------------------------------------------------------------------


def separability(differences: Tensor) -> Tensor | None:
    """Cohen's d_z (): mean of d (B,) in units of its standard deviation, larger where winners stand out.

    The paired effect size, because rewards of different prompts do not compare; it does not depend on the rewards'
    scale, so models and kinds of pairs (easy, hard) compare by it. None below two pairs or where all d are equal.
    """
    if len(differences) < 2:
        return None
    deviation = differences.double().std()  # of equal numbers exactly 0
    return differences.mean() / deviation if deviation > 0 else None
