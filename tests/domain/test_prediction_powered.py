"""PPI++: the closed form with numpy, and its guarantees."""

import numpy as np
import pytest

from app.domain.prediction_powered import FEWEST, powered


def sample(n: int, more: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return people's values, a judge's values on the same prompts and on others; the true win rate is 0.6.

    Args:
        noise: share of prompts on which the judge answers at random.
    """
    chance = np.random.default_rng(seed)
    truth = (chance.random(n + more) < 0.6).astype(float)
    judge = np.where(chance.random(n + more) < noise, chance.random(n + more) < 0.9, truth).astype(float)
    return truth[:n], judge[:n], judge[n:]


def test_it_is_the_closed_form() -> None:
    y, f, rest = sample(60, 240, 0.3, 1)
    found = powered(y, f, rest)
    assert found is not None
    every = np.concatenate([f, rest])
    weight = np.cov(y, f)[0, 1] / ((1 + 60 / 240) * every.var(ddof=1))
    value = y.mean() + weight * (rest.mean() - f.mean())
    error = np.sqrt((y - weight * f).var(ddof=1) / 60 + weight**2 * rest.var(ddof=1) / 240)
    assert 0 < weight < 1
    assert (found.weight, found.value) == pytest.approx((weight, value))
    assert (found.low, found.high) == pytest.approx((value - 1.959964 * error, value + 1.959964 * error))
    # With people alone, n prompts reach the same variance: var(y) / n = error ** 2.
    assert found.saved == pytest.approx(y.var(ddof=1) / error**2 - 60)
    assert found.saved > 20
    assert found.alone > (found.high - found.low) / 2


def test_a_judge_who_knows_nothing_changes_nothing_and_none_stands_alone() -> None:
    y, f, rest = sample(60, 240, 0.0, 2)
    found = powered(y, 1 - f, rest)
    assert found is not None
    assert (found.weight, found.value, found.saved) == (0, pytest.approx(y.mean()), pytest.approx(0))
    assert powered(y, np.ones(60), np.ones(240)).weight == 0  # type: ignore[union-attr]
    assert powered([], [], rest) is None
    assert powered(y[: FEWEST - 1], f[: FEWEST - 1], rest) is None
    assert powered(y, f, rest[: FEWEST - 1]) is None


def test_it_covers_the_truth_though_the_judge_is_wrong() -> None:
    """The judge alone would give 0.69 to 0.75 instead of 0.6; together they miss it in about one of twenty samples."""
    hits = widths = 0.0
    for seed in range(400):
        y, f, rest = sample(100, 400, 0.4, seed)
        found = powered(y, f, rest)
        assert found is not None
        hits += found.low <= 0.6 <= found.high
        widths += (found.high - found.low) / (2 * found.alone)
    assert 0.92 <= hits / 400 <= 0.98
    assert widths / 400 < 0.95
