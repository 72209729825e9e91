"""KL estimators against exact divergences, controllers against arithmetic."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from trainer.algorithms.kl import KLController, k1, k2, k3


def test_estimators_by_hand() -> None:
    x = torch.tensor([0.0, math.log(2), -math.log(2)])
    base = torch.full((3,), -1.5)
    torch.testing.assert_close(k1(base + x, base), x)
    torch.testing.assert_close(k2(base + x, base), torch.tensor([0.0, math.log(2) ** 2 / 2, math.log(2) ** 2 / 2]))
    # exp(-x) - 1 + x: 1/2 - 1 + ln 2 and 2 - 1 - ln 2
    torch.testing.assert_close(k3(base + x, base), torch.tensor([0.0, math.log(2) - 0.5, 1 - math.log(2)]))


def test_k1_and_k3_are_unbiased_and_k3_varies_less() -> None:
    p, q = Normal(0.3, 1.0), Normal(0.0, 1.0)
    torch.manual_seed(0)
    samples = p.sample((400_000,))
    logps, reference = p.log_prob(samples), q.log_prob(samples)
    exact = float(kl_divergence(p, q))  # 0.045
    assert float(k1(logps, reference).mean()) == pytest.approx(exact, rel=0.05)
    assert float(k3(logps, reference).mean()) == pytest.approx(exact, rel=0.05)
    assert float(k3(logps, reference).std()) < float(k1(logps, reference).std()) / 3
    assert float(k3(logps, reference).min()) >= 0


def test_adaptive_controller_follows_ziegler() -> None:
    controller = KLController(beta=0.2, target=6.0, horizon=1000)
    # KL 6.6: error 0.1, n = 100 -> beta * (1 + 0.1 * 100 / 1000)
    assert controller.step(6.6, 100).beta == pytest.approx(0.2 * 1.01)
    # Errors are clipped to +-0.2, also for a negative estimate.
    assert controller.step(60.0, 100).beta == pytest.approx(0.2 * 1.02)
    assert controller.step(-1.0, 100).beta == pytest.approx(0.2 * 0.98)
    assert controller.step(6.0, 100).beta == 0.2
    assert controller.beta == 0.2  # nothing was changed in place
    assert controller.step(6.6, 100).target == 6.0


@pytest.mark.parametrize("episodes", [1000, 1001, 5000, 50_000])
def test_a_rollout_beyond_the_horizon_never_turns_the_leash_around(episodes: int) -> None:
    # 1 - 0.2 * 5000 / 1000 would be 0; with more episodes, beta would be negative and reward KL.
    assert KLController(beta=0.2, target=6.0, horizon=1000).step(0.0, episodes).beta == pytest.approx(0.2 * 0.8)


def test_fixed_controller_stays() -> None:
    assert KLController(beta=0.1).step(100.0, 1000) == KLController(beta=0.1)
