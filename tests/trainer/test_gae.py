"""GAE against hand arithmetic and against its definition as a sum."""

import pytest
import torch

from trainer.algorithms.gae import gae


def test_three_steps_by_hand() -> None:
    # gamma 0.5, lambda 0.5. deltas: 1 + 0.5*4 - 2 = 1;  0 + 0.5*6 - 4 = -1;  10 + 0 - 6 = 4.
    # A_2 = 4;  A_1 = -1 + 0.25*4 = 0;  A_0 = 1 + 0.25*0 = 1.  R = A + V.
    result = gae(
        torch.tensor([[1.0, 0, 10]]), torch.tensor([[2.0, 4, 6]]), torch.ones(1, 3, dtype=torch.bool), 0.5, 0.5
    )
    assert result.advantages.tolist() == [[1, 0, 4]]
    assert result.returns.tolist() == [[3, 4, 10]]


def test_value_past_the_end_is_zero_whatever_padding_holds() -> None:
    # Row 0 ends after two tokens; later values must have no effect. With gamma = lambda = 1: A_0 = r_0 + r_1 - V_0.
    valid = torch.tensor([[True, True, False], [True, True, True]])
    rewards = torch.tensor([[1.0, 2, 100], [1, 2, 3]])
    values = torch.tensor([[0.5, 0.25, 1e6], [0.5, 0.25, 0.125]])
    result = gae(rewards, values, valid, 1.0, 1.0)
    assert result.advantages.tolist() == [[2.5, 1.75, 0], [5.5, 4.75, 2.875]]
    assert result.returns.tolist() == [[3, 2, 0], [6, 5, 3]]


def test_padding_on_either_side_gives_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    plain = gae(rewards, values, torch.ones(4, 6, dtype=torch.bool), 0.97, 0.9)
    for left, right in ((3, 0), (0, 3), (2, 2)):

        def pad(x: torch.Tensor, fill: float, left: int = left, right: int = right) -> torch.Tensor:
            return torch.nn.functional.pad(x, (left, right), value=fill)

        padded = gae(pad(rewards, 7.0), pad(values, -9.0), pad(torch.ones(4, 6), 0).bool(), 0.97, 0.9)
        torch.testing.assert_close(padded.advantages, pad(plain.advantages, 0.0))
        torch.testing.assert_close(padded.returns, pad(plain.returns, 0.0))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.0), (0.9, 1.0), (0.99, 0.5)])
def test_recursion_equals_the_sum_that_defines_it(gamma: float, gae_lambda: float) -> None:
    # Schulman et al. 2016, eq. 16: A_t = sum_l (gamma lambda)^l delta_{t+l}
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    values = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    result = gae(rewards, values, torch.ones(3, 8, dtype=torch.bool), gamma, gae_lambda)
    for i in range(3):
        for t in range(8):
            expected = 0.0
            for k in range(t, 8):
                next_value = values[i, k + 1].item() if k < 7 else 0.0
                delta = rewards[i, k].item() + gamma * next_value - values[i, k].item()
                expected += (gamma * gae_lambda) ** (k - t) * delta
            assert result.advantages[i, t].item() == pytest.approx(expected, abs=1e-12)
