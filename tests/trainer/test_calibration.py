"""Figures of a reward model's report, against hand arithmetic and the standard library."""

import math
import statistics

import pytest
import torch

from trainer.algorithms.calibration import (
    accuracy,
    expected_calibration_error,
    length_bias,
    length_slope,
    matched_length_accuracy,
    reliability_diagram,
    separability,
)

LN3 = math.log(3)  # s(ln 3) = 3/4


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
    # 15 bins on [0.5, 1] have width 1/30: 0.51 is in the first, 0.55 in the second. Pooled, the errors would cancel.
    d = torch.logit(torch.tensor([0.51, 0.55]))
    d[1] = -d[1]
    assert expected_calibration_error(d).item() == pytest.approx((0.49 + 0.55) / 2, abs=1e-6)


def test_length_bias_is_the_models_share_minus_peoples() -> None:
    chosen, rejected = torch.tensor([9, 2, 3, 4]), torch.tensor([5, 7, 8, 4])
    # People preferred the longer one in 1 of 3 pairs with different lengths; this model prefers it in all 3.
    assert length_bias(torch.tensor([1.0, -1.0, -1.0, 1.0]), chosen, rejected).item() == pytest.approx(1 - 1 / 3)
    assert length_bias(torch.tensor([1.0, 1.0, 1.0, 1.0]), chosen, rejected).item() == pytest.approx(0)
    assert length_bias(torch.tensor([1.0]), torch.tensor([4]), torch.tensor([4])) is None


def test_reliability_diagram_by_hand() -> None:
    ln9 = math.log(9)
    d = torch.tensor([LN3, LN3, LN3, -LN3, ln9, -ln9, 0.0])
    diagram = reliability_diagram(d)
    # Undecided: half are right at confidence 1/2. Then 3 of 4 are right at 3/4, and 1 of 2 at 9/10.
    assert [b.pairs for b in diagram] == [1, 4, 2]
    assert [b.confidence for b in diagram] == pytest.approx([0.5, 0.75, 0.9])
    assert [b.accuracy for b in diagram] == pytest.approx([0.5, 0.75, 0.5])


def test_length_slope_is_the_least_squares_line() -> None:
    chosen, rejected = torch.tensor([120, 40, 300, 77, 5]), torch.tensor([100, 90, 40, 77, 61])
    d = torch.tensor([0.4, -1.0, 2.5, 0.3, -0.2])
    slope = length_slope(d, chosen, rejected)
    assert slope is not None
    expected = statistics.linear_regression(((chosen - rejected) / 100).tolist(), d.tolist()).slope
    assert slope.item() == pytest.approx(expected, rel=1e-6)


def test_length_slope_of_a_model_that_adds_a_hundredth_a_token() -> None:
    chosen, rejected = torch.tensor([10, 200, 35]), torch.tensor([90, 20, 30])
    slope = length_slope(1.5 + 0.01 * (chosen - rejected), chosen, rejected)
    assert slope is not None
    assert slope.item() == pytest.approx(1.0, rel=1e-5)  # a nat per 100 tokens
    # Equal lengths give no slope, although the sum of three 0.05s is not exactly three times 0.05.
    for n in range(2, 12):
        for longer in range(1, 12):
            assert length_slope(torch.arange(n), torch.full((n,), 50 + longer), torch.full((n,), 50)) is None


def test_accuracy_on_pairs_of_like_length() -> None:
    # Differences of 10, 11 and 0 at 100 tokens: a tenth of the longer one still counts as similar.
    chosen, rejected = torch.tensor([90, 100, 50, 1]), torch.tensor([100, 89, 50, 2])
    share = matched_length_accuracy(torch.tensor([1.0, 1.0, -1.0, 1.0]), chosen, rejected)
    assert share is not None
    assert share.item() == 0.5
    assert matched_length_accuracy(torch.tensor([1.0]), torch.tensor([5]), torch.tensor([9])) is None


def test_separability_is_the_paired_effect_size() -> None:
    # mean 2, standard deviation sqrt((1 + 1 + 4 + 4) / 3)
    d = torch.tensor([1.0, 3.0, 4.0, 0.0])
    value, scaled = separability(d), separability(7 * d)
    assert value is not None
    assert scaled is not None
    assert value.item() == pytest.approx(2 / math.sqrt(10 / 3))
    assert scaled.item() == pytest.approx(value.item())
    assert separability(torch.tensor([1.0])) is None
    for n in range(2, 12):
        assert separability(torch.full((n,), 0.1)) is None
