import math

import pytest
import torch

from trainer.algorithms.preference import dpo_loss, implicit_rewards, log_ratio_margin

LN3 = math.log(3)


def test_margin_is_relative_to_the_reference() -> None:
    h = log_ratio_margin(torch.tensor([-4.0]), torch.tensor([-9.0]), torch.tensor([-5.0]), torch.tensor([-7.0]))
    assert h.item() == (-4 + 9) - (-5 + 7)


def test_dpo_loss_is_log_2_where_the_policy_is_its_reference() -> None:
    assert dpo_loss(torch.zeros(1), beta=0.1).item() == pytest.approx(math.log(2))


def test_dpo_loss_and_gradient_by_hand() -> None:
    h = torch.tensor([2 * LN3], requires_grad=True)
    loss = dpo_loss(h, beta=0.5)
    assert loss.item() == pytest.approx(-math.log(3 / 4))
    loss.sum().backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(-0.5 * (1 - 3 / 4))  # -beta (1 - s(beta h)), DPO section 4


def test_conservative_dpo_by_hand() -> None:
    loss = dpo_loss(torch.tensor([LN3]), beta=1.0, label_smoothing=0.1)
    assert loss.item() == pytest.approx(-(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4)))


def test_conservative_dpo_is_stationary_at_the_log_odds_of_its_noise() -> None:
    h = torch.tensor([math.log(0.9 / 0.1) / 0.5], requires_grad=True)
    dpo_loss(h, beta=0.5, label_smoothing=0.1).sum().backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(0, abs=1e-7)


def test_implicit_rewards_carry_no_gradient() -> None:
    logps = torch.tensor([-3.0], requires_grad=True)
    rewards = implicit_rewards(logps, torch.tensor([-5.0]), beta=0.1)
    assert rewards.item() == pytest.approx(0.2)
    assert not rewards.requires_grad
