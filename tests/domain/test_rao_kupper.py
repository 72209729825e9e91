"""The fit against closed forms, finite differences, statsmodels, choix and arenakit."""

from math import log, tanh

import choix
import numpy as np
import pytest
import statsmodels.api as sm
from arenakit.bt import fit_bt, fit_rao_kupper
from arenakit.schema import Arena, Battle
from numpy.typing import NDArray

from app.domain import rao_kupper

Drawn = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def logit(p: float) -> float:
    return log(p / (1 - p))


def random_board(seed: int, n: int = 400, policies: int = 5, nu: float = 0.0) -> Drawn:
    """Return first and second policies, and outcomes drawn from the model."""
    rng = np.random.default_rng(seed)
    strengths = rng.normal(0, 0.8, policies)
    a = rng.integers(0, policies, n)
    b = (a + rng.integers(1, policies, n)) % policies
    eta = strengths[a] - strengths[b]
    drawn = rng.random(n)
    first, second = rao_kupper.sigmoid(eta - nu), rao_kupper.sigmoid(-eta - nu)
    return a, b, (drawn < first).astype(np.int64) - (drawn > 1 - second)


def incidence(a: NDArray[np.int64], b: NDArray[np.int64], policies: int = 5) -> NDArray[np.float64]:
    """Return columns for all policies except the first."""
    eye = np.eye(policies)
    return (eye[a] - eye[b])[:, 1:]


def arena(a: NDArray[np.int64], b: NDArray[np.int64], outcome: NDArray[np.int64]) -> Arena:
    names = {1: "a", -1: "b", 0: "tie"}
    return Arena(
        [
            Battle(model_a=f"m{i}", model_b=f"m{j}", winner=names[said])  # type: ignore[arg-type]
            for i, j, said in zip(a.tolist(), b.tolist(), outcome.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize(("wins", "ties", "losses"), [(12, 5, 7), (3, 20, 1), (30, 0, 10)])
def test_two_policies_in_closed_form(wins: int, ties: int, losses: int) -> None:
    """Two parameters for two free shares: the model fits the counts exactly."""
    n = wins + ties + losses
    outcome = np.repeat([1, 0, -1], [wins, ties, losses])
    found = rao_kupper.fit(np.ones((n, 1)), outcome)
    assert found is not None
    # eta - nu = logit P(win), eta + nu = logit(1 - P(loss))
    below, above = logit(wins / n), logit(1 - losses / n)
    assert found.coefficients[0] == pytest.approx((below + above) / 2, abs=1e-8)
    assert found.nu == pytest.approx((above - below) / 2, abs=1e-8)
    assert rao_kupper.win_rate(found.coefficients[0], found.nu) == pytest.approx((wins + ties / 2) / n)
    assert found.information.shape == ((2, 2) if ties else (1, 1))


def test_of_equal_policies_ties_are_tanh_of_half_the_threshold() -> None:
    found = rao_kupper.fit(np.ones((20, 1)), np.repeat([1, 0, -1], [6, 8, 6]))
    assert found is not None
    assert found.coefficients[0] == pytest.approx(0, abs=1e-12)
    assert tanh(found.nu / 2) == pytest.approx(8 / 20)


def test_gradient_and_information_are_the_likelihoods_derivatives() -> None:
    a, b, outcome = random_board(3, nu=0.4)
    rng = np.random.default_rng(4)
    design = np.column_stack([incidence(a, b), rng.normal(0, 1, (len(a), 2))])
    found = rao_kupper.fit(design, outcome)
    assert found is not None
    at = np.append(found.coefficients, found.nu)

    def value(point: NDArray[np.float64]) -> float:
        return rao_kupper.log_likelihood(design, outcome, point[:-1], float(point[-1]))

    step = 1e-4
    each = np.eye(len(at)) * step
    gradient = [(value(at + one) - value(at - one)) / (2 * step) for one in each]
    assert gradient == pytest.approx(np.zeros(len(at)), abs=1e-4)
    assert found.scores.sum(axis=0) == pytest.approx(np.zeros(len(at)), abs=1e-6)
    second = [
        [(value(at + i + j) - value(at + i - j) - value(at - i + j) + value(at - i - j)) / (4 * step**2) for i in each]
        for j in each
    ]
    assert -np.array(second) == pytest.approx(found.information, rel=1e-3, abs=1e-3)
    # Also away from the maximum, where the gradient is not 0.
    moved = at + 0.1
    scores, _ = rao_kupper._derivatives(design, outcome, moved[:-1], float(moved[-1]))
    gradient = [(value(moved + one) - value(moved - one)) / (2 * step) for one in each]
    assert scores.sum(axis=0) == pytest.approx(np.array(gradient), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_choix_finds_the_same_strengths_without_ties(seed: int) -> None:
    a, b, outcome = random_board(seed)
    found = rao_kupper.fit(incidence(a, b), outcome)
    assert found is not None
    won = [(i, j) if said > 0 else (j, i) for i, j, said in zip(a.tolist(), b.tolist(), outcome.tolist(), strict=True)]
    theirs = choix.ilsr_pairwise(5, won, alpha=0.0, tol=1e-12)
    assert found.coefficients == pytest.approx(theirs[1:] - theirs[0], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_arenakit_finds_the_same_strengths_ties_and_advantage_of_the_first(seed: int) -> None:
    a, b, outcome = random_board(seed, nu=0.5)
    found = rao_kupper.fit(incidence(a, b), outcome)
    battles = arena(a, b, outcome)
    order = [battles.models.index(f"m{i}") for i in range(5)]
    theirs = fit_rao_kupper(battles.counts(), prior=0.0)
    assert found is not None
    assert theirs.tie_theta is not None
    assert found.coefficients == pytest.approx((theirs.scores - theirs.scores[order[0]])[order[1:]], abs=1e-6)
    assert found.nu == pytest.approx(log(theirs.tie_theta), abs=1e-6)

    decided = outcome != 0
    a, b, outcome = a[decided], b[decided], outcome[decided]
    found = rao_kupper.fit(np.column_stack([incidence(a, b), np.ones(len(a))]), outcome)
    theirs = fit_bt(arena(a, b, outcome).counts(), order=True, prior=0.0)
    assert found is not None
    assert theirs.order_log is not None
    assert found.coefficients[:4] == pytest.approx((theirs.scores - theirs.scores[order[0]])[order[1:]], abs=1e-6)
    assert found.coefficients[4] == pytest.approx(theirs.order_log, abs=1e-6)


def test_statsmodels_finds_the_same_effects_of_covariates() -> None:
    a, b, outcome = random_board(8)
    design = np.column_stack([incidence(a, b), np.random.default_rng(9).normal(0, 1, (len(a), 3))])
    found = rao_kupper.fit(design, outcome)
    theirs = sm.Logit((outcome > 0).astype(float), design).fit(disp=0, tol=1e-12)
    assert found is not None
    assert found.coefficients == pytest.approx(theirs.params, abs=1e-7)
    assert np.linalg.inv(found.information) == pytest.approx(theirs.cov_params(), rel=1e-6)


@pytest.mark.parametrize(
    ("design", "outcome"),
    [
        ([[1.0]] * 4, [1, 1, 1, 1]),  # always wins
        ([[1.0, 2.0], [1.0, -1.0], [1.0, 3.0], [1.0, -2.0]], [1, -1, 1, -1]),  # the second column decides
        ([[1.0]] * 4, [0, 0, 0, 0]),  # nobody wins
    ],
)
def test_what_decides_everything_has_no_finite_estimate(design: list[list[float]], outcome: list[int]) -> None:
    assert rao_kupper.fit(np.array(design), np.array(outcome)) is None


def test_a_long_chain_of_better_policies_is_no_separation() -> None:
    """Twelve policies, each of which wins 9 of 10 against the previous one: 26 log-odds from the first to the last."""
    a = np.repeat(np.arange(1, 13), 10)
    outcome = np.tile([1] * 9 + [-1], 12)
    found = rao_kupper.fit(incidence(a, a - 1, 13), outcome)
    assert found is not None
    assert found.coefficients == pytest.approx(np.arange(1, 13) * log(9), abs=1e-6)
