"""Crowd-BT against its own likelihood, differentiated numerically, and on simulated data with known scores."""

import numpy as np
import pytest

from app.domain import crowd_bt, reliability
from app.domain.consensus import Crowd, Votes, decide
from app.domain.crowd_bt import PRIOR_ANSWERS, SCORE_VARIANCE, CrowdBT
from tests.domain import votes
from tests.domain.crowds import CROWDS
from tests.domain.votes import Sample, outcomes


def simulated(
    scores: np.ndarray, eta: np.ndarray, votes: int, nu: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Return random pairs of items judged by random labelers: (comparison, labeler, side, items)."""
    rng = np.random.default_rng(seed)
    items = np.array([rng.choice(len(scores), 2, replace=False) for _ in range(votes // 3)])
    comparison, labeler = np.arange(votes) % len(items), rng.integers(0, len(eta), votes)
    d = scores[items[comparison, 1]] - scores[items[comparison, 0]]
    tie = rng.random(votes) < nu / (np.exp(d / 2) + np.exp(-d / 2) + nu)
    prefers_b = rng.random(votes) < 1 / (1 + np.exp(-d))
    says_b = prefers_b == (rng.random(votes) < eta[labeler])
    return comparison, labeler, np.where(tie, 0, np.where(says_b, 1, -1)), items


def penalised(fit: CrowdBT, scores: np.ndarray, data: tuple[np.ndarray, ...]) -> float:
    """Return the log-likelihood of all answers by the model's definition, with the prior of the scores."""
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
    # A labeler who is wrong nine times in ten has as much information as one who is right nine times, and it is used.
    d = scores[data[3][:, 1]] - scores[data[3][:, 0]]
    assert np.mean((found.p_b > 0.5) == (d > 0)) > 0.9


def test_what_is_said_of_other_pairs_counts() -> None:
    """A often beats B, and B often beats C. So A beats C, although one labeler once said otherwise."""
    wins = [(0, 1)] * 10 + [(1, 2)] * 10
    items = np.array([*wins, (0, 2)])
    n = len(items)
    side = np.array([-1] * 20 + [1])
    found = crowd_bt.fit(np.arange(n), np.arange(n) % 3, side, items, labelers=3)
    assert found.scores[0] > found.scores[1] > found.scores[2]
    assert found.p_b[-1] < 0.3
    # Pairs whose responses occur in no other pair do not affect each other.
    alone = crowd_bt.fit(np.arange(n), np.arange(n) % 3, side, np.arange(2 * n).reshape(n, 2), labelers=3)
    assert alone.p_b[-1] > 0.5


def test_a_labeler_of_few_answers_is_an_average_one() -> None:
    rng = np.random.default_rng(4)
    comparison, labeler, side, items = simulated(rng.normal(size=10), np.full(4, 0.9), 2000)
    more = crowd_bt.fit(np.append(comparison, 0), np.append(labeler, 4), np.append(side, side[0]), items, labelers=5)
    # It differs from the crowd's PRIOR_ANSWERS by at most one answer.
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
    """It does not conclude that everybody errs: the next labeler who chooses a side would be read the wrong way."""
    found = crowd_bt.fit(np.arange(8), np.arange(8) % 2, np.zeros(8, int), np.arange(16).reshape(8, 2), labelers=2)
    assert found.crowd.eta == crowd_bt.UNFITTED.eta
    assert found.habits.eta == pytest.approx([crowd_bt.UNFITTED.eta] * 2)


# --- as used for the consensus ---------------------------------------------------------------------------------------


def decided(sample: Sample) -> np.ndarray:
    """Return posteriors (C, 3) of the method crowd_bt, as in a project's fit."""
    items = sample.items if len(sample.items) else np.arange(2 * len(sample.gold)).reshape(-1, 2)
    n = len(sample.gold)
    fit = reliability.fit(sample.comparison, sample.labeler, sample.side, comparisons=n, labelers=sample.labelers)
    joint = crowd_bt.fit(sample.comparison, sample.labeler, sample.side, items, labelers=sample.labelers)
    said = Votes(sample.comparison, sample.side, np.ones(n, np.int64), fit.weights[sample.labeler])
    difference = crowd_bt.by_others(joint, sample.comparison, sample.labeler, sample.side, items)
    found = decide("crowd_bt", said, Crowd(fit.crowd, fit.ties, fit.tie), difference)
    return outcomes(found.p_b, found.p_tie)


def test_real_votes_are_decided_better_than_by_counting_them() -> None:
    """Majority 89.4%; the scores alone, which have no ties, 71.6%; ours 92.3%."""
    sample = votes.everything()
    joint = crowd_bt.fit(sample.comparison, sample.labeler, sample.side, sample.items, labelers=sample.labelers)
    alone = sample.accuracy(outcomes(joint.p_b, joint.p_tie))
    ours = sample.accuracy(decided(sample))
    assert alone < sample.majority() - 0.1
    assert ours > sample.majority() + 0.02
    # By topic, where the median worker has judged one or two pairs: better on average, and never much worse.
    topics = votes.topics()[::3]
    gain = [sample.accuracy(decided(sample)) - sample.majority() for sample in topics]
    assert np.mean(gain) > 0.005
    assert min(gain) > -0.025
    # If four of five or more votes agree, almost no pair is overturned.
    most = sample.counts.max(axis=1)
    clear = (most >= 4) & (most * 5 >= 4 * sample.counts.sum(axis=1))
    overturned = decided(sample).argmax(axis=1)[clear] != sample.counts.argmax(axis=1)[clear]
    assert overturned.mean() < 0.02


@pytest.mark.parametrize("name", ["2 each", "10 each", "spammers, few answers", "hard items", "mostly ties"])
def test_no_made_up_crowd_falls_below_the_majority(name: str) -> None:
    """As for Dawid-Skene: never more than three standard errors worse."""
    samples = [CROWDS[name].sample(seed) for seed in range(3)]
    gain = np.concatenate([s.hits(decided(s)) - s.hits(s.counts.astype(float)) for s in samples])
    assert gain.sum() >= -3 * np.sqrt((gain**2).sum())


def test_where_responses_recur_scores_decide_what_votes_leave_open() -> None:
    """A pair has one vote for each side; twenty other comparisons put A before B through C."""
    wins = [(0, 2)] * 10 + [(2, 1)] * 10
    items = np.array([*wins, (0, 1)])
    comparison = np.append(np.repeat(np.arange(20), 3), [20, 20])
    side = np.append([-1] * 61, 1)
    sample = Sample(comparison, np.arange(62) % 3, side, items, np.zeros(21, int))
    p = decided(sample)[-1]
    assert p[0] > 1.5 * p[2]


def test_what_others_say_is_what_a_fit_without_the_comparison_says() -> None:
    rng = np.random.default_rng(6)
    comparison, labeler, side, items = simulated(rng.normal(size=12), rng.uniform(0.7, 1, 8), 600, nu=0.4)
    items[0] = 12, 13  # two that stand in no other
    found = crowd_bt.fit(comparison, labeler, side, items, labelers=8, tolerance=1e-6, max_iterations=2000)
    others = crowd_bt.by_others(found, comparison, labeler, side, items)
    assert others[0] == pytest.approx(0, abs=1e-3)
    for left_out in (1, 17, 60):
        kept = comparison != left_out
        without = crowd_bt.fit(
            comparison[kept], labeler[kept], side[kept], items, labelers=8, tolerance=1e-6, max_iterations=2000
        )
        a, b = items[left_out]
        assert others[left_out] == pytest.approx(without.scores[b] - without.scores[a], abs=0.1)
