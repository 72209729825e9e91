"""Each method by arithmetic, mirrored judgments, and the results for a verdict and for an empty comparison."""

import itertools

import numpy as np
import pytest

from app.domain import consensus as module
from app.domain.consensus import (
    Consensus,
    Crowd,
    Decisions,
    Method,
    Votes,
    consensus,
    decide,
    majority,
    verdict,
    winners,
)
from app.domain.reliability import Weights

METHODS: tuple[Method, ...] = ("majority", "strength_weighted", "dawid_skene", "crowd_bt")


def votes_of(*preferences: list[int], strengths: int = 3) -> Votes:
    """Return one comparison per list, with labelers of unknown reliability."""
    said = [p for each in preferences for p in each]
    return Votes(
        comparison=np.repeat(np.arange(len(preferences)), [len(each) for each in preferences]),
        preference=np.array(said),
        strengths=np.full(len(preferences), strengths),
        weights=np.tile(Crowd().weights, (len(said), 1)),
    )


def one(method: Method, *preferences: int, strengths: int = 3, crowd: Crowd = Crowd()) -> Consensus:
    found = decide(method, votes_of(list(preferences), strengths=strengths), crowd)
    return Consensus(*(float(value[0]) for value in found))


def test_majority_is_the_mean_and_the_smoothed_share() -> None:
    # Three for B, one tie, one for A: (3 + 1/2 + 1/2) / (5 + 1), and one tie of those six.
    found = majority([3, 1, 2, 0, -1])
    assert found == (pytest.approx(1.0), pytest.approx(4 / 6), pytest.approx(1 / 6), 1.0)
    assert majority([1]).p_b == pytest.approx(3 / 4)
    assert majority([0]) == (0.0, 0.5, 0.5, 1.0)


def test_strengths_weigh_by_the_scales_mean_step() -> None:
    # On a scale of three steps, 3 counts 3/2 and 1 counts 1/2. (3/2 + 1/2) / (3/2 + 1/2 + 1), and the mean of 3 and -1.
    assert one("strength_weighted", 3, -1) == (1.0, pytest.approx(2 / 3), 0.0, 1.0)
    # A tie counts 1: (3/2 + 1/2 + 1/2) / (3/2 + 1 + 1).
    assert one("strength_weighted", 3, 0)[1:3] == (pytest.approx(2.5 / 3.5), pytest.approx(1 / 3.5))
    # With only one step, it equals the majority.
    assert one("strength_weighted", 1, 1, -1, 0, strengths=1) == pytest.approx(majority([1, 1, -1, 0]))


def test_dawid_skene_is_bayes_rule() -> None:
    # ln 4 for B, and 0 for A and tie: 4 of 6, plus half of the tie's 1 of 6.
    assert one("dawid_skene", 2)[1:3] == (pytest.approx(0.75), pytest.approx(1 / 6))
    # A labeler of weight ln 9 outvotes two of weight ln 2 each: 9, 4 and 1 of 14.
    trusted = votes_of([2, -1, -1])._replace(weights=np.log([[9.0, 1.0], [2.0, 1.0], [2.0, 1.0]]))
    found = decide("dawid_skene", trusted, Crowd())
    assert found.p_b[0] == pytest.approx((9 + 1 / 2) / 14)
    # The consensus is (2 p - 1) of the strength that labelers of its side gave.
    assert found.preference[0] == pytest.approx((2 * 9.5 / 14 - 1) * 2)
    # If nobody ever says tie, there is no tie: 4 of 5.
    found = decide("dawid_skene", votes_of([1]), Crowd(ties=False))
    assert (found.p_b[0], found.p_tie[0]) == (pytest.approx(0.8), 0.0)


def test_crowd_bts_scores_count_up_to_half_a_vote() -> None:
    split, ahead, tied = [1, -1], [1, -1, -1], [0, 0, 0, 0, 1]
    said = votes_of(split, ahead, tied, [1])
    plain = decide("crowd_bt", said, Crowd())
    assert plain.p_b == pytest.approx(decide("dawid_skene", said, Crowd()).p_b)
    found = decide("crowd_bt", said, Crowd(), np.array([9.0, 9.0, 9.0, -9.0]))
    # B leads by half of a vote's ln 4, so it is twice as likely: 4, 1 and 4 become 4 / sqrt 2 and 4 sqrt 2.
    assert found.p_b[0] == pytest.approx((4 * 2**0.5 + 0.5) / (4 * 2**0.5 + 1 + 4 / 2**0.5))
    # It decides if the votes do not. It overturns neither a majority of one vote, nor four ties of five.
    assert winners(found.p_b, found.p_tie).tolist() == [1, -1, 0, 1]
    little = decide("crowd_bt", said, Crowd(), np.full(4, 0.1))
    assert (little.p_b > plain.p_b).all()
    assert (little.p_b[:2] < found.p_b[:2]).all()
    # The other methods ignore these scores.
    assert (
        decide("majority", said, Crowd(), np.full(4, 9.0)).p_b.tolist()
        == decide("majority", said, Crowd()).p_b.tolist()
    )


@pytest.mark.parametrize("method", METHODS)
def test_mirrored_judgments_mirror_and_nothing_is_certain(method: Method) -> None:
    for said in ([1], [2, 2, 2], [3, -1, 0], [0, 0], [-3, -3, 1, 0, 0]):
        one_way, other = one(method, *said), one(method, *(-p for p in said))
        assert one_way.p_b + other.p_b == pytest.approx(1)
        assert one_way.p_tie == pytest.approx(other.p_tie)
        assert one_way.preference == pytest.approx(-other.preference)
        assert 0 < one_way.p_b < 1
        assert one_way.p_tie / 2 <= min(one_way.p_b, 1 - one_way.p_b) + 1e-12
    assert one(method, 0, 0).p_b == pytest.approx(0.5)
    assert one(method, 1, 1).p_b > one(method, 1).p_b > 0.5
    assert one(method, 1, 1, 1, 1, -1).preference > 0


@pytest.mark.parametrize("method", METHODS)
def test_comparisons_do_not_mix(method: Method) -> None:
    together = decide(method, votes_of([2, 1], [-3], [0, 1, -1]), Crowd())
    apart = [decide(method, votes_of(each), Crowd()) for each in ([2, 1], [-3], [0, 1, -1])]
    for field, values in zip(Decisions._fields, together, strict=True):
        assert values == pytest.approx([float(getattr(each, field)[0]) for each in apart])


def test_a_verdict_stands_in_place_of_judgments_and_of_what_is_stored() -> None:
    stored = Consensus(1.5, 0.8, 0.1)
    assert consensus([3, 3, -1], -2, stored) == verdict(-2) == (-2.0, pytest.approx(0.1), 0.0, 1.0)
    assert verdict(0)[:2] == (0.0, 0.5)
    assert consensus([3, 3, -1], None, stored) == stored
    assert consensus([3, 3, -1]) == majority([3, 3, -1]).rounded()
    # Stored values of judgments that no longer exist have no effect.
    assert consensus([], None, stored) is None


def test_a_tie_is_where_nothing_is_likelier() -> None:
    assert majority([0]).is_tie
    assert majority([1, -1]).is_tie
    assert majority([0, 0, 1]).is_tie  # 1/2 a tie, 3/8 B, 1/8 A
    assert not majority([0, 1]).is_tie  # 1/3 a tie, 1/2 B, 1/6 A
    assert not majority([-1]).is_tie


def test_votes_and_not_strengths_say_who_won() -> None:
    ties = majority([0, 0, 0, 0, 1])  # 4/6 a tie, 3.5/6 for B with half of it
    assert (ties.p_b, ties.p_tie) == (pytest.approx(3.5 / 6), pytest.approx(4 / 6))
    assert (ties.winner, ties.preference) == (0, 0.0)
    # Five prefer A slightly and two prefer B strongly: the mean favors B, but the votes favor A, with strength 0.
    for_a = majority([-1] * 5 + [3] * 2)
    assert (for_a.p_b, for_a.winner, for_a.preference) == (pytest.approx(2.5 / 8), -1, 0.0)
    assert one("strength_weighted", *[-1] * 5, *[3] * 2).winner == 1


@pytest.mark.parametrize("method", METHODS)
def test_strength_is_never_for_the_other_side(method: Method) -> None:
    said = [list(each) for each in itertools.product((-3, -1, 0, 2), repeat=4)]
    found = decide(method, votes_of(*said), Crowd())
    for n in range(len(said)):
        alone = Consensus(*(float(value[n]) for value in found))
        assert alone.preference * alone.winner >= 0
        assert alone.winner or alone.preference == 0
        assert alone.rounded().winner == alone.winner


def test_weights_of_nobody_are_the_majoritys() -> None:
    assert one("dawid_skene", 1).p_b == pytest.approx(majority([1]).p_b)
    assert module.Crowd().weights == Weights(*[pytest.approx(np.log(4))] * 2)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_stored_is_never_certain(method: Method) -> None:
    """A hundred labelers agree; rounding would make their probability 1."""
    assert 0.5 < one(method, *[1] * 100).rounded().p_b < 1
    assert 0 < one(method, *[-1] * 100).rounded().p_b < 0.5


def test_the_first_ties_count_though_the_last_fit_knew_none() -> None:
    found = decide("dawid_skene", votes_of([0, 0, 1], [1, 1]), Crowd(ties=False))
    assert found.p_tie[0] == pytest.approx(16 / 21)  # 4^2 of 4^2 + 4 + 1
    assert found.p_tie[1] == 0.0
