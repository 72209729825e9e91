import math

import pytest
import torch

from trainer.algorithms.logprobs import entropy, scatter_to_mask, sequence_logps, token_logps
from trainer.algorithms.masked import masked_mean, masked_var, masked_whiten

VALUES = torch.tensor([[1.0, 2.0, 99.0], [6.0, -50.0, float("nan")]])
VALID = torch.tensor([[True, True, False], [True, False, False]])


def test_masked_mean_counts_every_valid_entry_alike_and_ignores_the_rest() -> None:
    assert masked_mean(VALUES, VALID).item() == 3.0


def test_masked_variance_with_and_without_bessels_correction() -> None:
    assert masked_var(VALUES, VALID).item() == pytest.approx((4 + 1 + 9) / 2)
    assert masked_var(VALUES, VALID, unbiased=False).item() == pytest.approx(14 / 3)


def test_whitening_gives_mean_0_variance_1_and_zero_where_invalid() -> None:
    whitened = masked_whiten(VALUES, VALID)
    assert masked_mean(whitened, VALID).item() == pytest.approx(0, abs=1e-6)
    assert masked_var(whitened, VALID).item() == pytest.approx(1)
    assert whitened[~VALID].tolist() == [0, 0, 0]


def test_whitening_without_shift_keeps_the_mean() -> None:
    whitened = masked_whiten(VALUES, VALID, shift_mean=False)
    assert masked_mean(whitened, VALID).item() == pytest.approx(3.0)
    assert masked_var(whitened, VALID).item() == pytest.approx(1)


def test_token_logps_at_a_temperature() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    assert token_logps(logits, torch.tensor([1, 0])).tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 2)])
    # Dividing by T = 1/2 squares the odds: 9 to 1.
    assert token_logps(logits, torch.tensor([1, 0]), 0.5).tolist() == pytest.approx([math.log(9 / 10), math.log(1 / 2)])


def test_token_logps_gradient_is_one_hot_minus_softmax() -> None:
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    token_logps(logits, torch.tensor([1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-0.25, 0.25])


def test_entropy_of_known_distributions() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3), -1e4, -1e4]])
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy(logits).tolist() == pytest.approx([math.log(4), three_to_one])


def test_scatter_and_sequence_sums_follow_row_order() -> None:
    mask = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    logps = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert scatter_to_mask(logps, mask).tolist() == [[0, 1, 2], [4, 0, 0], [0, 0, 0]]
    assert sequence_logps(logps, mask).tolist() == [3, 4, 0]
    sequence_logps(logps, mask)[0].backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [1, 1, 0]
