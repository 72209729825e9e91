"""Statistics over the valid entries of a tensor. Masks are True for valid entries; all valid entries weigh the same."""

import torch
from torch import Tensor

NOISE = 1e-5  # relative: sums of fp32 log-probs vary by less than this between two forward passes


def masked_mean(values: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the mean () of the valid entries of `values` (...), not a mean of row means. NaN if none is valid."""
    return torch.where(valid_mask, values, 0).sum() / valid_mask.sum()


def masked_var(values: Tensor, valid_mask: Tensor, unbiased: bool = True) -> Tensor:
    """Return the variance () of the valid entries, with Bessel's correction n / (n - 1) unless `unbiased` is False."""
    n = valid_mask.sum()
    centred = values - masked_mean(values, valid_mask)
    return masked_mean(centred**2, valid_mask) * (n / (n - 1) if unbiased else 1)


def masked_whiten(values: Tensor, valid_mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale valid entries to variance 1, and to mean 0 unless `shift_mean` is False; 0 elsewhere.

    A single entry has no variance and stays unchanged. A spread within float noise is not scaled up, so equal scores
    give no advantage.
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
