import math

import pytest
import torch

from trainer.algorithms.bradley_terry import bradley_terry_loss, centering_penalty
from trainer.algorithms.calibration import (
    accuracy,
    expected_calibration_error,
    length_bias,
)

LN3 = math.log(3)  # s(ln 3) = 3/4


def test_loss_is_the_negative_log_probability_of_the_choice() -> None:
    loss = bradley_terry_loss(torch.tensor([LN3, 5.0]), torch.tensor([0.0, 5.0]))
    assert loss.tolist() == pytest.approx([-math.log(3 / 4), math.log(2)])


def test_soft_labels_weigh_both_outcomes() -> None:
    loss = bradley_terry_loss(torch.tensor([LN3]), torch.tensor([0.0]), p_chosen=torch.tensor([2 / 3]))
    assert loss.item() == pytest.approx(-(2 / 3 * math.log(3 / 4) + 1 / 3 * math.log(1 / 4)))


def test_soft_label_gradient_is_probability_minus_label() -> None:
    chosen = torch.tensor([LN3], requires_grad=True)
    bradley_terry_loss(chosen, torch.tensor([0.0]), p_chosen=torch.tensor([0.9])).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(3 / 4 - 0.9)


def test_a_tie_is_best_at_no_difference() -> None:
    half = torch.tensor([0.5])
    losses = [bradley_terry_loss(torch.tensor([d]), torch.tensor([0.0]), half).item() for d in (-1.0, 0.0, 1.0)]
    assert losses[1] == pytest.approx(math.log(2))
    assert losses[0] == pytest.approx(losses[2])
    assert losses[0] > losses[1]


def test_margin_is_what_the_difference_must_exceed() -> None:
    loss = bradley_terry_loss(torch.tensor([1.0 + LN3]), torch.tensor([0.0]), margin=torch.tensor([1.0]))
    assert loss.item() == pytest.approx(-math.log(3 / 4))


def test_loss_is_finite_far_out() -> None:
    assert bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_centering_penalty() -> None:
    assert centering_penalty(torch.tensor([2.0]), torch.tensor([-0.5])).item() == 2.25


def test_accuracy_counts_no_difference_as_half() -> None:
    assert accuracy(torch.tensor([1.0, -1.0, 0.0, 2.0])).item() == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_calibration_error_by_hand() -> None:
    # Four pairs at confidence 3/4, three of them right: calibrated. Two at 9/10, one right: off by 4/10.
    ln9 = math.log(9)
    d = torch.tensor([LN3, LN3, LN3, -LN3, ln9, -ln9])
    assert expected_calibration_error(d).item() == pytest.approx(2 / 6 * 0.4, abs=1e-6)


def test_calibration_error_of_certain_and_of_undecided_models() -> None:
    assert expected_calibration_error(torch.tensor([50.0, 50.0])).item() == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(torch.tensor([-50.0, -50.0])).item() == pytest.approx(1, abs=1e-6)
    assert expected_calibration_error(torch.zeros(3)).item() == pytest.approx(0, abs=1e-6)


def test_neighbouring_bins_are_not_pooled() -> None:
    # 15 bins on [0.5, 1] are 1/30 wide: 0.51 is in the first, 0.55 in the second. Pooled, their errors would cancel.
    d = torch.logit(torch.tensor([0.51, 0.55]))
    d[1] = -d[1]
    assert expected_calibration_error(d).item() == pytest.approx((0.49 + 0.55) / 2, abs=1e-6)


def test_length_bias_is_the_models_share_minus_peoples() -> None:
    chosen, rejected = torch.tensor([9, 2, 3, 4]), torch.tensor([5, 7, 8, 4])
    # People took the longer one in 1 of 3 pairs that differ; this model prefers it in all 3.
    assert length_bias(torch.tensor([1.0, -1.0, -1.0, 1.0]), chosen, rejected).item() == pytest.approx(1 - 1 / 3)
    assert length_bias(torch.tensor([1.0, 1.0, 1.0, 1.0]), chosen, rejected).item() == pytest.approx(0)
    assert length_bias(torch.tensor([1.0]), torch.tensor([4]), torch.tensor([4])) is None
