"""Crowd-BT against its own likelihood, differentiated numerically, and against worlds whose scores are known."""

import numpy as np
import pytest

from app.domain import crowd_bt
from app.domain.crowd_bt import PRIOR_ANSWERS, SCORE_VARIANCE, CrowdBT


def simulated(
    scores: np.ndarray, eta: np.ndarray, votes: int, nu: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Random pairs of items, random labelers: (comparison, labeler, side, items)."""
    rng = np.random.default_rng(seed)
    items = np.array([rng.choice(len(scores), 2, replace=False) for _ in range(votes // 3)])
    comparison, labeler = np.arange(votes) % len(items), rng.integers(0, len(eta), votes)
    d = scores[items[comparison, 1]] - scores[items[comparison, 0]]
    tie = rng.random(votes) < nu / (np.exp(d / 2) + np.exp(-d / 2) + nu)
    prefers_b = rng.random(votes) < 1 / (1 + np.exp(-d))
    says_b = prefers_b == (rng.random(votes) < eta[labeler])
    return comparison, labeler, np.where(tie, 0, np.where(says_b, 1, -1)), items


def penalised(fit: CrowdBT, scores: np.ndarray, data: tuple[np.ndarray, ...]) -> float:
    """The log-likelihood of all answers, by the model's words, with the scores' prior."""
    comparison, labeler, side, items = data
    d = (scores[items[:, 1]] - scores[items[:, 0]])[comparison]
    eta, nu = fit.habits.eta[labeler], fit.habits.nu[labeler]
    up = 1 / (1 + np.exp(-d * side))
    tie = nu / (np.exp(d / 2) + np.exp(-d / 2) + nu)
    answer = np.where(side == 0, tie, (1 - tie) * (eta * up + (1 - eta) * (1 - up)))
    return float(np.log(answer).sum() - (scores**2).sum() / (2 * SCORE_VARIANCE))


def test_no_other_scores_are_likelier() -> None:
    rng = np.random.default_rng(1)
    data = simulated(rng.normal(size=12), rng.uniform(0.6, 1, 8), 1500, nu=0.6)
    found = crowd_bt.fit(*data, labelers=8, tolerance=1e-8, max_iterations=2000)
    assert found.converged
    at_best = penalised(found, found.scores, data)
    for i in range(12):
        step = np.eye(12)[i] * 1e-4
        up, down = penalised(found, found.scores + step, data), penalised(found, found.scores - step, data)
        assert (up - down) / 2e-4 == pytest.approx(0, abs=1e-3)  # the slope
        assert max(up, down) < at_best


def test_scores_and_labelers_are_found() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=30)
    eta = np.array([0.95] * 6 + [0.55, 0.1])
    data = simulated(scores, eta, 12_000, nu=0.4, seed=3)
    found = crowd_bt.fit(*data, labelers=8)
    assert found.converged
    centred = scores - scores.mean()
    assert np.corrcoef(found.scores, centred)[0, 1] > 0.97
    assert found.habits.eta == pytest.approx(eta, abs=0.1)
    assert found.habits.nu == pytest.approx(np.full(8, 0.4), abs=0.1)
    assert ((found.low < found.habits.eta) & (found.habits.eta < found.high)).all()
    # One who is wrong nine times in ten tells as much as one who is right: all of it is used.
    d = scores[data[3][:, 1]] - scores[data[3][:, 0]]
    assert np.mean((found.p_b > 0.5) == (d > 0)) > 0.9


def test_what_is_said_of_other_pairs_counts() -> None:
    """A beats B and B beats C, often: then A beats C, though one labeler once said otherwise."""
    wins = [(0, 1)] * 10 + [(1, 2)] * 10
    items = np.array([*wins, (0, 2)])
    n = len(items)
    side = np.array([-1] * 20 + [1])
    found = crowd_bt.fit(np.arange(n), np.arange(n) % 3, side, items, labelers=3)
    assert found.scores[0] > found.scores[1] > found.scores[2]
    assert found.p_b[-1] < 0.3
    # Pairs of responses that stand alone know nothing of each other.
    alone = crowd_bt.fit(np.arange(n), np.arange(n) % 3, side, np.arange(2 * n).reshape(n, 2), labelers=3)
    assert alone.p_b[-1] > 0.5


def test_a_labeler_of_few_answers_is_an_average_one() -> None:
    rng = np.random.default_rng(4)
    comparison, labeler, side, items = simulated(rng.normal(size=10), np.full(4, 0.9), 2000)
    more = crowd_bt.fit(np.append(comparison, 0), np.append(labeler, 4), np.append(side, side[0]), items, labelers=5)
    # At most one answer's worth of difference beside PRIOR_ANSWERS of the crowd's.
    assert abs(more.habits.eta[4] - more.crowd.eta) < 1 / (PRIOR_ANSWERS + 1)


def test_no_ties_and_nothing_at_all() -> None:
    found = crowd_bt.fit(*simulated(np.linspace(-1, 1, 6), np.full(3, 0.9), 600), labelers=3)
    assert found.p_tie.max() == 0.0
    assert found.crowd.nu == 0.0
    nothing = np.empty(0, np.int64)
    assert crowd_bt.fit(nothing, nothing, nothing, np.empty((0, 2), np.int64), labelers=0).converged


def test_sides_mirror() -> None:
    rng = np.random.default_rng(5)
    comparison, labeler, side, items = simulated(rng.normal(size=10), rng.uniform(0.6, 1, 5), 900, nu=0.3)
    one = crowd_bt.fit(comparison, labeler, side, items, labelers=5)
    other = crowd_bt.fit(comparison, labeler, -side, items[:, ::-1], labelers=5)
    assert other.p_b == pytest.approx(1 - one.p_b, abs=1e-9)


def test_where_all_are_ties_nothing_is_known_of_errors() -> None:
    """Not that everybody errs: who chooses a side next would be understood the other way round."""
    found = crowd_bt.fit(np.arange(8), np.arange(8) % 2, np.zeros(8, int), np.arange(16).reshape(8, 2), labelers=2)
    assert found.crowd.eta == crowd_bt.UNFITTED.eta
    assert found.habits.eta == pytest.approx([crowd_bt.UNFITTED.eta] * 2)
