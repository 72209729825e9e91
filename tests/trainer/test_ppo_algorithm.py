"""PPO's formulas against hand arithmetic."""

import math

import pytest
import torch

from trainer.algorithms.masked import masked_mean, masked_var, masked_whiten
from trainer.algorithms.ppo import explained_variance, penalise_unfinished, policy_loss, token_rewards, value_loss

VALID = torch.tensor([[True, True, True], [True, False, False]])


def test_score_lies_on_the_last_valid_token_and_kl_on_every_one() -> None:
    logps = torch.tensor([[-1.0, -2, -3], [-4, 50, 60]])
    reference = torch.tensor([[-1.5, -2, -2], [-3, 70, 80]])
    rewards, non_score = token_rewards(torch.tensor([10.0, 20]), logps, reference, VALID, beta=0.1)
    # -0.1 * [0.5, 0, -1] and -0.1 * [-1]; padding gets nothing
    torch.testing.assert_close(non_score, torch.tensor([[-0.05, 0, 0.1], [0.1, 0, 0]]))
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0, 10.1], [20.1, 0, 0]]))


def test_penalty_for_missing_eos_is_subtracted() -> None:
    scores, finished = torch.tensor([2.0, -1]), torch.tensor([True, False])
    assert penalise_unfinished(scores, finished, 1.5).tolist() == [2, -2.5]
    assert penalise_unfinished(scores, finished, None).tolist() == [2, -1]


def test_policy_loss_clips_only_where_that_makes_it_worse() -> None:
    # ratios 2, 0.5, 1 with advantages 1, 1, -2; the fourth token: ratio 0.5 with a negative advantage
    ratio = torch.tensor([[2.0, 0.5, 1.0], [0.5, 99, 99]])
    advantages = torch.tensor([[1.0, 1, -2], [-1, 5, 5]])
    result = policy_loss(ratio.log(), torch.zeros(2, 3), advantages, VALID, clip_range=0.2)
    # max(-A rho, -A clip(rho)): max(-2, -1.2), max(-.5, -.8), 2, max(.5, .8)
    assert result.loss.item() == pytest.approx((-1.2 - 0.5 + 2 + 0.8) / 4)
    assert result.clipfrac.item() == pytest.approx(2 / 4)
    assert result.ratio.item() == pytest.approx((2 + 0.5 + 1 + 0.5) / 4)
    # k2 of new against old: x^2 / 2
    assert result.approxkl.item() == pytest.approx(3 * math.log(2) ** 2 / 2 / 4, rel=1e-5)


def test_policy_gradient_is_zero_where_clipped_and_minus_a_rho_elsewhere() -> None:
    logps = torch.tensor([[math.log(2), math.log(1.1)]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    policy_loss(logps, torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), mask, 0.2).loss.backward()
    torch.testing.assert_close(logps.grad, torch.tensor([[0.0, -3 * 1.1 / 2]]))


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    # V, V_old, R = (1, 0, 1): clipped to 0.2, error 0.64 > 0.   (0.1, 0, 1): within the range, 0.81.
    # (2, 0, -1): clipped 0.2 -> 1.44 < 9.   (5, 5, 5): 0
    values, old = torch.tensor([[1.0, 0.1, 2], [5, 9, 9]]), torch.tensor([[0.0, 0, 0], [5, 0, 0]])
    returns = torch.tensor([[1.0, 1, -1], [5, 0, 0]])
    result = value_loss(values, old, returns, VALID, clip_range=0.2)
    assert result.loss.item() == pytest.approx((0.64 + 0.81 + 9 + 0) / 4 / 2)
    assert result.clipfrac.item() == pytest.approx(1 / 4)


def test_whitening_of_rewards_keeps_the_mean() -> None:
    values = torch.tensor([[1.0, 2, 6], [3, 1e9, -1e9]])
    kept = masked_whiten(values, VALID, shift_mean=False)
    assert masked_mean(kept, VALID).item() == pytest.approx(3.0, abs=1e-5)
    assert masked_var(kept, VALID).item() == pytest.approx(1.0, abs=1e-5)
    # mean 3, variance (4 + 1 + 9 + 0) / 3
    scale = (14 / 3) ** 0.5
    torch.testing.assert_close(kept[0], torch.tensor([3 - 2 / scale, 3 - 1 / scale, 3 + 3 / scale]))
    assert kept[1, 1:].tolist() == [0, 0]


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2, 3], [4, 0, 0]])
    assert explained_variance(returns, returns, VALID).item() == 1
    assert explained_variance(returns + 7, returns, VALID).item() == pytest.approx(1)
    assert explained_variance(torch.zeros(2, 3), returns, VALID).item() == 0
