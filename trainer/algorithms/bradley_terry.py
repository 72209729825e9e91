"""The Bradley-Terry model of pairwise preference: P(chosen better) = s(d), d = r_chosen - r_rejected, s the logistic.

Bradley and Terry 1952; as a loss for reward models Ouyang et al. 2022 (InstructGPT), with margins Touvron et al. 2023
(Llama 2). Losses are per row (B,), so that the caller weighs and averages.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, p_chosen: Tensor | None = None, margin: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood (B,) of rewards (B,) each.

    Args:
        p_chosen: probability (B,) that chosen is better, the soft label; certain (1) if None.
        margin: what d must exceed (B,), larger for stronger preferences; 0 if None.
    """
    d = chosen_rewards - rejected_rewards
    if margin is not None:
        d = d - margin
    if p_chosen is None:
        return -F.logsigmoid(d)  # L = -log s(d - m), Llama 2 eq. 2
    # L = -(p log s(d - m) + (1 - p) log s(m - d)): cross-entropy to the labelers' posterior
    return -(p_chosen * F.logsigmoid(d) + (1 - p_chosen) * F.logsigmoid(-d))


def centering_penalty(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """(r_c + r_r)^2 per row (B,): holds the mean, which Bradley-Terry leaves free, near 0 (Eisenstein et al. 2023)."""
    return (chosen_rewards + rejected_rewards) ** 2


def accuracy(differences: Tensor) -> Tensor:
    """Share () of d (B,) above 0; 0 counts one half."""
    return (differences > 0).float().mean() + 0.5 * (differences == 0).float().mean()


def expected_calibration_error(differences: Tensor, bins: int = 15) -> Tensor:
    """ECE () of d (B,): sum over bins of n_b / n * |accuracy_b - confidence_b| (Guo et al. 2017).

    Confidence is s(|d|), in [0.5, 1], cut into equal bins (lower, upper]; d = 0 is half correct.
    """
    confidence = torch.sigmoid(differences.double().abs())
    correct = (differences > 0).double() + 0.5 * (differences == 0).double()
    index = (((confidence - 0.5) / 0.5 * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.double).index_add(0, index.cpu(), (correct - confidence).cpu())
    return gap.abs().sum() / len(differences)  # n_b / n * |mean gap of the bin| = |sum of its gaps| / n


def length_bias(differences: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor | None:
    """How much more often the model prefers the longer response than people do: a difference of shares () in [-1, 1].

    Over pairs (B,) whose lengths in tokens differ; None where there is none. A model's d = 0 counts one half.
    """
    differ = chosen_lengths != rejected_lengths
    if not differ.any():
        return None
    chosen_is_longer = (chosen_lengths > rejected_lengths)[differ]
    d = differences[differ]
    towards_longer = torch.where(chosen_is_longer, d, -d)
    return accuracy(towards_longer) - chosen_is_longer.float().mean()
