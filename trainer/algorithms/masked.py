"""Statistics over the valid entries of a tensor. Masks are True = valid; every entry they hold counts alike."""

import torch
from torch import Tensor

NOISE = 1e-5  # relative: sums of fp32 log-probs differ by less from one pass to the next


def masked_mean(values: Tensor, valid_mask: Tensor) -> Tensor:
    """Mean () of the valid entries of `values` (...), not a mean of row means. NaN when none is valid."""
    return torch.where(valid_mask, values, 0).sum() / valid_mask.sum()


def masked_var(values: Tensor, valid_mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance () of the valid entries, with Bessel's correction n / (n - 1) unless `unbiased` is False."""
    n = valid_mask.sum()
    centred = values - masked_mean(values, valid_mask)
    return masked_mean(centred**2, valid_mask) * (n / (n - 1) if unbiased else 1)


def masked_whiten(values: Tensor, valid_mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Valid entries scaled to variance 1, and to mean 0 unless `shift_mean` is False; 0 elsewhere.

    A single entry, which has no variance, is left as it is. A spread within the noise of floats is none either: the
    values are centred and not scaled up, so equal scores give no advantage.
    Rewards are whitened without shifting their mean: the sign of a reward means something (Huang et al. 2024).
    """
    if valid_mask.sum() < 2:
        return torch.where(valid_mask, values, 0)
    mean = masked_mean(values, valid_mask)
    variance = masked_var(values, valid_mask)
    spread = variance.sqrt() > NOISE * (1 + mean.abs())
    whitened = (values - mean) * torch.where(spread, torch.rsqrt(variance + eps), 1)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(valid_mask, whitened, 0)
