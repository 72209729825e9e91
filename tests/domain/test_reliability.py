"""The pooled model finds planted reliabilities, uses known truths, and on real votes is never below the majority."""

import numpy as np
import pytest

from app.domain import reliability
from app.domain.pooling import logit_interval
from app.domain.reliability import PRIOR_ANSWERS, UNKNOWN, DawidSkene
from tests.domain import votes
from tests.domain.crowds import CROWDS
from tests.domain.votes import Sample, outcomes


def fit(sample: Sample, **options: object) -> DawidSkene:
    sizes = {"comparisons": len(sample.gold), "labelers": sample.labelers}
    return reliability.fit(sample.comparison, sample.labeler, sample.side, **sizes, **options)  # type: ignore[arg-type]


def simulated(knows: list[float], habit: list[float], comparisons: int, seed: int = 0) -> Sample:
    """Every labeler answers every comparison: the truth with the probability that they know it, otherwise by habit."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, 2, comparisons)
    labelers = len(knows)
    labeler, comparison = np.divmod(np.arange(labelers * comparisons), comparisons)
    tie = rng.random(len(labeler)) < np.array(habit)[labeler]
    by_habit = np.where(tie, 0, rng.choice([-1, 1], len(labeler)))
    side = np.where(rng.random(len(labeler)) < np.array(knows)[labeler], truth[comparison], by_habit)
    return Sample(comparison, labeler, side, np.empty((0, 2), np.int64), truth)


def test_it_finds_how_labelers_answer() -> None:
    knows, habit = [0.8, 0.7, 0.65, 0.6, 0.5], [0.3, 0.1, 0.8, 0.5, 0.2]
    sample = simulated(knows, habit, 4000)
    found = fit(sample)
    assert found.converged
    assert found.knows == pytest.approx(knows, abs=0.03)
    assert found.habit == pytest.approx(habit, abs=0.05)
    assert ((found.low < found.reliability) & (found.reliability < found.high)).all()


def test_outstanding_labelers_stand_out() -> None:
    """Pooling moves the best and the worst labelers towards the crowd by a few hundredths, and keeps their order."""
    sample = simulated([0.9, 0.7, 0.5, 0.3, 0.0], [0.3, 0.1, 0.8, 0.5, 0.2], 4000)
    found = fit(sample)
    assert found.knows == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.0], abs=0.07)
    # A labeler who knows nothing is right one time in three.
    assert found.reliability[4] == pytest.approx(1 / 3, abs=0.04)
    assert sample.accuracy(outcomes(found.p_b, found.p_tie)) > sample.accuracy(sample.counts.astype(float)) + 0.05


def test_the_confusion_matrix_is_what_labelers_did() -> None:
    sample = simulated([0.8, 0.6, 0.4], [0.2, 0.5, 0.3], 5000, seed=1)
    confusion = fit(sample).confusion
    assert confusion.sum(axis=2) == pytest.approx(np.ones((3, 3)))
    done = np.zeros((3, 3, 3))
    np.add.at(done, (sample.labeler, sample.gold[sample.comparison] + 1, sample.side + 1), 1)
    assert confusion == pytest.approx(done / done.sum(axis=2, keepdims=True), abs=0.07)


def test_which_response_is_a_makes_no_difference() -> None:
    sample = votes.everything().topic(3)
    one = fit(sample)
    flipped = np.random.default_rng(0).random(len(sample.gold)) < 0.5
    other = fit(sample._replace(side=np.where(flipped[sample.comparison], -sample.side, sample.side)))
    assert other.p_b == pytest.approx(np.where(flipped, 1 - one.p_b, one.p_b), abs=1e-9)
    assert other.reliability == pytest.approx(one.reliability, abs=1e-9)


def test_the_same_judgments_give_the_same_numbers_in_any_order() -> None:
    sample = votes.everything().topic(0)
    order = np.random.default_rng(0).permutation(len(sample.side))
    shuffled = sample._replace(**{name: getattr(sample, name)[order] for name in ("comparison", "labeler", "side")})
    assert fit(sample).p_b.tolist() == fit(sample).p_b.tolist()
    assert fit(shuffled).p_b == pytest.approx(fit(sample).p_b, abs=1e-9)


def test_few_answers_say_little_of_a_labeler() -> None:
    """A newcomer who agreed with the others once counts as an average labeler, not as a perfect one."""
    sample = simulated([0.7] * 5, [1 / 3] * 5, 300)
    crowd = fit(sample)
    agreed = int(np.flatnonzero(np.abs(sample.counts).max(axis=1) == 5)[0])
    more = sample._replace(
        comparison=np.append(sample.comparison, agreed),
        labeler=np.append(sample.labeler, 5),
        side=np.append(sample.side, sample.counts[agreed].argmax() - 1),
    )
    found = fit(more)
    # One certain answer next to the crowd's PRIOR_ANSWERS.
    average = float(crowd.knows.mean())
    assert found.knows[5] == pytest.approx((1 + PRIOR_ANSWERS * average) / (1 + PRIOR_ANSWERS), abs=0.02)
    assert found.high[5] - found.low[5] > 2 * (found.high[0] - found.low[0])


def test_labelers_are_measured_on_known_truths() -> None:
    """Three labelers who copy each other outvote two good ones, unless the truth is known."""
    rng = np.random.default_rng(3)
    truth = rng.choice([-1, 1], 200)
    copied = rng.choice([-1, 1], 200)
    side = np.concatenate([truth, truth, copied, copied, copied])
    labeler, comparison = np.divmod(np.arange(1000), 200)
    sample = Sample(comparison, labeler, side, np.empty((0, 2), np.int64), truth)
    misled = fit(sample)
    assert misled.reliability[0] < misled.reliability[2]
    told = fit(sample, known=np.where(np.arange(200) < 150, truth, UNKNOWN))
    assert told.reliability[0] > 0.95
    assert told.low[0] > told.high[2]
    # The fifty comparisons without a known truth follow the labelers who proved right.
    assert ((told.p_b > 0.5) == (truth > 0))[150:].mean() > 0.9
    # Nobody ever said tie, so there are no ties.
    assert told.p_tie.max() == 0.0
    assert told.confusion.sum(axis=2) == pytest.approx(np.ones((5, 3)))


def test_who_is_the_first_to_say_tie_is_believed_as_for_a_side() -> None:
    sample = simulated([0.8] * 3, [0.0] * 3, 200)
    sample = sample._replace(side=np.where(sample.side == 0, 1, sample.side))
    found = fit(sample)
    assert not found.ties
    assert found.weights[:, 1].tolist() == found.weights[:, 0].tolist()


def test_nothing_to_fit() -> None:
    nothing = np.empty(0, np.int64)
    found = reliability.fit(nothing, nothing, nothing, comparisons=0, labelers=0)
    assert found.converged
    assert len(found.p_b) == len(found.reliability) == 0


def test_real_votes_as_a_whole() -> None:
    """Majority 88.4% or 89.4%, depending on how shared first places count; the model of 1979 87.7%; ours 93.8%."""
    sample = votes.everything()
    majority = sample.majority(shared_is_tie=True), sample.majority()
    plain = sample.accuracy(votes.plain_dawid_skene(sample, iterations=30))
    found = fit(sample)
    ours = sample.accuracy(outcomes(found.p_b, found.p_tie))
    assert found.converged
    assert majority == pytest.approx((0.884, 0.894), abs=0.001)
    assert plain == pytest.approx(0.877, abs=0.005)
    assert ours > 0.935


@pytest.mark.parametrize("number", range(26))
def test_real_votes_of_a_topic_never_fall_below_the_majority(number: int) -> None:
    """In a topic, the median worker has judged one or two pairs; the model of 1979 is worse than counting there."""
    sample = votes.everything().topic(number)
    assert np.median(np.bincount(sample.labeler)) <= 2
    majority = max(sample.majority(), sample.majority(shared_is_tie=True))
    found = fit(sample)
    assert found.converged
    assert sample.accuracy(outcomes(found.p_b, found.p_tie)) >= majority - 1e-12
    assert sample.accuracy(votes.plain_dawid_skene(sample, iterations=40)) < majority


@pytest.mark.parametrize("name", CROWDS)
def test_no_made_up_crowd_falls_below_the_majority(name: str) -> None:
    """No constant was chosen on these crowds. "Below" means by more than three standard errors of as many coins as
    there are comparisons that the two methods decide differently."""
    samples = [CROWDS[name].sample(seed) for seed in range(5)]
    fits = [fit(sample) for sample in samples]
    ours = np.concatenate(
        [sample.hits(outcomes(found.p_b, found.p_tie)) for sample, found in zip(samples, fits, strict=True)]
    )
    majority = np.concatenate([sample.hits(sample.counts.astype(float)) for sample in samples])
    assert (ours - majority).sum() >= -3 * np.sqrt(((ours - majority) ** 2).sum())
    plain = np.concatenate([sample.hits(votes.plain_dawid_skene(sample, 40)) for sample in samples])
    if CROWDS[name].each <= 10 and not CROWDS[name].adversaries:  # too few answers for the model of 1979
        assert plain.mean() < majority.mean()
    if name in ("spammers", "adversaries"):  # here labelers differ, and the model learns it
        assert ours.mean() > majority.mean() + 0.03


def test_how_common_ties_are_is_taken_from_what_most_call() -> None:
    def odds(ties: int, shared: int, sides: int) -> float:
        return reliability.tie_odds(np.array([[0, 2, 1]] * ties + [[1, 1, 0]] * shared + [[0, 1, 2]] * sides, float))

    # Of 97, six are ties and 12 are half ties; with one more of each kind 13 of 100, so a third is possible for these.
    assert odds(6, 12, 79) == pytest.approx(0)
    # Two in a hundred: at most four times as many, against 46 for either side.
    assert odds(1, 0, 96) == pytest.approx(np.log(0.08 / 0.46))
    # More than a third: unchanged.
    assert odds(59, 0, 38) == pytest.approx(np.log(0.6 / 0.2))


@pytest.mark.filterwarnings("error")
def test_an_interval_of_hardly_anything_known_is_all_there_is() -> None:
    low, high = logit_interval(np.array([1e-8, 0.5]), np.array([1e-3, 1e-4]))
    assert (low[0], high[0]) == pytest.approx((0, 1))
    # On the logit scale 1.96 * 0.01 / (1/2 * 1/2) each way.
    assert (low[1], high[1]) == pytest.approx((1 / (1 + np.exp(0.0784)), 1 / (1 + np.exp(-0.0784))), abs=1e-6)


def test_the_fit_goes_on_until_nothing_moves_where_close_calls_are_common() -> None:
    """600 pairs from Bradley-Terry with three votes each: disagreement looks like errors, and EM is slow."""
    rng = np.random.default_rng(0)
    comparison = np.repeat(np.arange(600), 3)
    labeler = np.concatenate([rng.choice(30, 3, replace=False) for _ in range(600)])
    difference, eta = rng.normal(0, 2, 600)[comparison], rng.uniform(0.55, 0.98, 30)[labeler]
    better = rng.random(1800) < 1 / (1 + np.exp(-difference))
    side = np.where((rng.random(1800) < eta) == better, 1, -1)
    side[rng.random(1800) < 0.2 / (np.exp(difference / 2) + np.exp(-difference / 2) + 0.2)] = 0
    found, exact = (
        reliability.fit(comparison, labeler, side, comparisons=600, labelers=30, **options)
        for options in ({}, {"tolerance": 1e-8, "max_iterations": 10_000})
    )
    assert found.converged
    assert found.p_b == pytest.approx(exact.p_b, abs=0.01)


def test_a_million_judgments() -> None:
    """An iteration takes ten passes over the judgments, and the number of iterations is small for any data size."""
    rng = np.random.default_rng(0)
    n, comparisons, labelers = 1_000_000, 300_000, 2000
    comparison, labeler = rng.integers(0, comparisons, n), rng.integers(0, labelers, n)
    truth = rng.integers(-1, 2, comparisons)
    skill = rng.beta(6, 4, labelers)
    side = np.where(rng.random(n) < skill[labeler], truth[comparison], rng.integers(-1, 2, n))
    found = reliability.fit(comparison, labeler, side, comparisons=comparisons, labelers=labelers)
    assert found.converged
    assert found.iterations <= 30
    assert np.corrcoef(found.knows, skill)[0, 1] > 0.95
