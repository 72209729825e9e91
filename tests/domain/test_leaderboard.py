"""Boards with planted results that are known by closed forms, by symmetry, or by drawing from the model."""

from math import exp, log

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import rao_kupper
from app.domain.leaderboard import Board, Matches, Standing, board
from app.domain.proportions import wilson
from app.domain.student import quantile
from tests.domain.boards import BASE, ONE, THREE, TWO, both_orders, matches


def of(found: Board, policy: int) -> Standing:
    return next(each for each in found.standings if each.policy == policy)


def wins(standing: Standing) -> float:
    assert standing.wins is not None
    return standing.wins.value


def strength(standing: Standing) -> float:
    assert standing.strength is not None
    return standing.strength.value


def test_two_policies_by_hand() -> None:
    """ONE wins 24 of 40, with 8 ties and 8 losses, each on a different prompt.

    Two parameters fit the counts exactly, so the win rate is (24 + 4) / 40.
    """
    found = board(matches([(ONE, BASE, 1, 24), (ONE, BASE, 0, 8), (ONE, BASE, -1, 8)]), [BASE, ONE])
    assert (found.reference, found.judgments, found.prompts, found.labelers, found.ties) == (BASE, 40, 40, 8, 8)
    assert [(each.policy, each.rank, each.judgments, each.prompts) for each in found.standings] == [
        (ONE, 1, 40, 40),
        (BASE, 2, 40, 40),
    ]
    one, base = found.standings
    assert wins(one) == pytest.approx(28 / 40)
    # logit P(win) = log(24/16) = eta - nu; logit(1 - P(loss)) = log(32/8) = eta + nu
    assert strength(one) == pytest.approx((log(24 / 16) + log(32 / 8)) / 2)
    assert base.wins is not None
    assert tuple(base.wins) == (0.5, 0.5, 0.5)
    assert found.ahead == one.wins
    assert one.wins is not None
    assert 0.5 < one.wins.low < 28 / 40 < one.wins.high < 0.9


def test_the_interval_of_two_policies_by_hand() -> None:
    """30 wins of 40 without ties, each on a different prompt, by 4 labelers: too few labelers to cluster by.

    The log-odds log(3) have the variance 1/30 + 1/10. All prompts differ; clustering by them multiplies it by 40/39.
    """
    said = matches([(ONE, BASE, 1, 30), (ONE, BASE, -1, 10)])
    found = board(said._replace(labeler=np.arange(40) % 4), [BASE, ONE])
    assert not found.by_labeler
    one = of(found, ONE)
    half = quantile(0.975, 39) * (40 / 39 * (1 / 30 + 1 / 10)) ** 0.5
    assert one.strength is not None
    assert one.wins is not None
    assert tuple(one.strength) == pytest.approx((log(3), log(3) - half, log(3) + half))
    assert one.wins.low == pytest.approx(1 / (1 + exp(-one.strength.low)))  # without ties, both say the same
    assert one.wins.high == pytest.approx(1 / (1 + exp(-one.strength.high)))


def test_three_policies_whose_odds_agree() -> None:
    """Odds of 2 : 1, 3 : 1 and, between the better two, 3 : 2 fit strengths 1, 2 and 3 exactly."""
    said = [(ONE, BASE, 1, 40), (ONE, BASE, -1, 20), (TWO, BASE, 1, 45), (TWO, BASE, -1, 15)]
    said += [(TWO, ONE, 1, 36), (TWO, ONE, -1, 24)]
    found = board(matches(said), [BASE, ONE, TWO])
    assert [each.policy for each in found.standings] == [TWO, ONE, BASE]
    assert strength(of(found, ONE)) == pytest.approx(log(2))
    assert strength(of(found, TWO)) == pytest.approx(log(3))
    assert wins(of(found, TWO)) == pytest.approx(3 / 4)
    # 36 of 60 can be chance, so the better two share the first rank, both ahead of the base.
    assert [each.rank for each in found.standings] == [1, 1, 3]
    assert found.ahead is not None
    assert found.ahead.value == pytest.approx(3 / 5)
    assert found.ahead.low < 0.5

    turned = board(both_orders(matches(said)), [BASE, ONE, TWO], reference=TWO)
    assert strength(of(turned, BASE)) == pytest.approx(-log(3))
    assert strength(of(turned, ONE)) == pytest.approx(log(2) - log(3))


def with_lengths(rows: list[tuple[int, int, int, float, int]]) -> Matches:
    """Return matches from rows of (a, b, outcome, relative length, count)."""
    said = matches([(a, b, outcome, n) for a, b, outcome, _, n in rows])
    style = np.zeros((len(said.a), 4))
    style[:, 0] = np.repeat([row[3] for row in rows], [row[4] for row in rows])
    return said._replace(style=style)


def test_longer_is_not_better() -> None:
    """The longer response wins 3 of 4, whichever policy wrote it. ONE's response is longer in 80 of 100 comparisons.

    Raw, ONE wins (60 + 5) / 100. At equal length the policies are equal. All differences here are equal, so the typical
    difference wins 3/4.
    """
    rows = [(ONE, BASE, 1, 0.5, 60), (ONE, BASE, -1, 0.5, 20), (ONE, BASE, 1, -0.5, 5), (ONE, BASE, -1, -0.5, 15)]
    found = board(with_lengths(rows), [BASE, ONE])
    one = of(found, ONE)
    assert one.controlled is not None
    assert wins(one) == pytest.approx(0.65)
    assert one.controlled.value == pytest.approx(0.5)
    assert one.gap == pytest.approx(-0.15)
    assert one.parts
    (length,) = found.effects
    assert (length.name, length.typical) == ("length", 0.5)
    assert length.wins.value == pytest.approx(3 / 4)
    assert length.wins.low > 0.5
    assert found.left_out == dict.fromkeys(("position", "headers", "lists", "bold"), "equal")
    assert found.uncontrolled == ""


def test_better_is_not_longer() -> None:
    """ONE wins 3 of 4 whether its response is longer or shorter, so both figures are the same."""
    rows = [(ONE, BASE, 1, 0.5, 30), (ONE, BASE, -1, 0.5, 10), (ONE, BASE, 1, -0.5, 30), (ONE, BASE, -1, -0.5, 10)]
    one = of(board(with_lengths(rows), [BASE, ONE]), ONE)
    assert one.controlled is not None
    assert wins(one) == pytest.approx(3 / 4)
    assert one.controlled.value == pytest.approx(3 / 4)
    assert not one.parts


def test_the_side_shown_first_is_told_apart() -> None:
    """The policies are equal, and the first shown response wins 3 of 4. ONE is shown first in 30 of 40."""
    said = matches([(ONE, BASE, 1, 24), (ONE, BASE, -1, 8), (ONE, BASE, 1, 2), (ONE, BASE, -1, 6)])
    # 24 of 32 as the first, 2 of 8 as the second
    found = board(said._replace(position=np.repeat([1.0, -1.0], [32, 8])), [BASE, ONE])
    assert wins(of(found, ONE)) == pytest.approx(0.5)
    (position,) = found.effects
    assert (position.name, position.typical) == ("position", 1.0)
    assert position.wins.value == pytest.approx(3 / 4)


def test_a_length_that_goes_with_the_policy_cannot_be_told_from_it() -> None:
    found = board(with_lengths([(ONE, BASE, 1, 0.5, 60), (ONE, BASE, -1, 0.5, 20)]), [BASE, ONE])
    assert found.uncontrolled == "length"
    assert found.left_out["length"] == "inseparable"
    assert of(found, ONE).controlled is None
    assert wins(of(found, ONE)) == pytest.approx(3 / 4)


def test_what_cannot_be_controlled_is_said() -> None:
    few = with_lengths(
        [(ONE, BASE, 1, 0.5, 6), (ONE, BASE, -1, 0.5, 5), (ONE, BASE, 1, -0.5, 4), (ONE, BASE, -1, -0.5, 5)]
    )
    assert board(few._replace(position=np.tile([1.0, -1.0], 10)), [BASE, ONE]).uncontrolled == "few"  # 20 for 3
    assert board(few, [BASE, ONE]).uncontrolled == ""  # 20 for 2
    rows = [(ONE, BASE, 1, 0.5, 30), (ONE, BASE, -1, -0.5, 30)]
    assert board(with_lengths(rows), [BASE, ONE]).uncontrolled == "separated"
    same = matches([(ONE, BASE, 1, 30), (ONE, BASE, -1, 30)])
    found = board(same._replace(position=np.repeat([1.0, -1.0], 30)), [BASE, ONE])
    assert (found.refused, found.standings) == ("position", [])


@pytest.mark.parametrize(("differing", "why"), [(9, "few"), (10, None)])
def test_what_few_pairs_differ_in_does_not_spoil_the_rest(differing: int, why: str | None) -> None:
    """This happens in PandaLM's test set: headers differ in two pairs, and both have the same winner."""
    rows = [(ONE, BASE, 1, 0.5, 60), (ONE, BASE, -1, 0.5, 20), (ONE, BASE, 1, -0.5, 5), (ONE, BASE, -1, -0.5, 15)]
    plain = with_lengths(rows)
    style, position = plain.style.copy(), plain.position.copy()
    style[:differing, 1] = 1.0  # all of them wins
    assert board(plain._replace(style=style), [BASE, ONE]).left_out.get("headers") == why
    if why:
        position[:differing] = 1.0
        found, known = board(plain._replace(style=style, position=position), [BASE, ONE]), board(plain, [BASE, ONE])
        assert (found.left_out["position"], found.refused, found.uncontrolled) == (why, "", "")
        assert found.standings == known.standings


def test_nothing_is_ranked_on_too_little() -> None:
    for said, why in (([], "few"), ([(ONE, BASE, 1, 10), (ONE, BASE, -1, 9)], "few"), ([(ONE, BASE, 0, 30)], "ties")):
        found = board(matches(said), [BASE, ONE])
        assert (found.refused, found.standings, found.reference) == (why, [], BASE)
    four_prompts = matches([(ONE, BASE, 1, 20), (ONE, BASE, -1, 20)])._replace(prompt=np.arange(40) % 4)
    assert board(four_prompts, [BASE, ONE]).refused == "few"


def test_a_policy_on_few_prompts_has_no_interval_and_no_rank() -> None:
    said = [(ONE, BASE, 1, 30), (ONE, BASE, -1, 10), (TWO, BASE, 1, 3), (TWO, BASE, -1, 1)]
    found = board(matches(said), [BASE, ONE, TWO])
    assert [(each.policy, each.rank, each.prompts) for each in found.standings] == [
        (ONE, 1, 40),
        (BASE, 2, 44),
        (TWO, None, 4),
    ]
    assert of(found, TWO).wins is None


def test_a_wide_interval_lifts_no_policy_over_stronger_ones() -> None:
    """TWO is weaker than ONE. But it has so few judgments that, unlike ONE, it does not differ clearly from THREE."""
    said = [(BASE, ONE, 1, 100), (BASE, ONE, -1, 90), (BASE, TWO, 1, 4), (BASE, TWO, -1, 3)]
    said += [(THREE, BASE, 1, 130), (THREE, BASE, -1, 70)]
    found = board(matches(said), [BASE, ONE, TWO, THREE])
    assert [(each.policy, each.rank) for each in found.standings] == [(THREE, 1), (BASE, 2), (ONE, 2), (TWO, 2)]
    compared = board(matches(said), [BASE, ONE, TWO, THREE], reference=THREE)
    two, one = of(compared, TWO).wins, of(compared, ONE).wins
    assert two is not None
    assert one is not None
    assert two.value < one.value < one.high < 0.5 < two.high


def test_what_is_not_connected_is_named_with_what_would_connect_it() -> None:
    said = [(ONE, BASE, 1, 20), (ONE, BASE, -1, 10), (TWO, THREE, 1, 3), (TWO, THREE, -1, 1)]
    found = board(matches(said), [BASE, ONE, TWO, THREE, 50])
    assert {each.policy for each in found.standings} == {BASE, ONE}
    assert [each.policies for each in found.apart] == [(TWO, THREE), (50,)]
    assert [each.link for each in found.apart] == [(THREE, ONE), (50, ONE)]  # of equal ones, the newer
    assert found.separated == []
    other = board(matches(said), [BASE, ONE, TWO, THREE, 50], reference=TWO)
    assert (other.reference, other.refused, other.judgments) == (TWO, "few", 4)
    assert [each.policies for each in other.apart] == [(BASE, ONE), (50,)]


def test_a_policy_that_always_wins_gets_words_and_no_number() -> None:
    said = [(ONE, BASE, 1, 30), (ONE, BASE, -1, 20), (TWO, ONE, 1, 12), (THREE, BASE, -1, 6), (50, TWO, -1, 4)]
    found = board(matches(said), [BASE, ONE, TWO, THREE, 50])
    assert {each.policy for each in found.standings} == {BASE, ONE}
    assert [(each.policy, each.side, each.judgments) for each in found.separated] == [
        (TWO, 1, 12),
        (THREE, -1, 6),
        (50, 0, 0),  # TWO beat it, as it beat ONE
    ]
    two, three, fifty = (each.wins for each in found.separated)
    assert two is not None
    assert three is not None
    assert tuple(two) == pytest.approx((1.0, *wilson(12, 12)))  # type: ignore[misc]
    assert tuple(three) == pytest.approx((0.0, *wilson(0, 6)))  # type: ignore[misc]
    assert fifty is None
    # All wins of one policy: nothing can be ranked.
    alone = board(matches([(ONE, BASE, 1, 30)]), [BASE, ONE])
    assert (alone.reference, alone.refused) == (BASE, "few")
    assert [(each.policy, each.side) for each in alone.separated] == [(ONE, 1)]


def test_the_reference_is_the_oldest_of_those_that_can_be_ranked_on_most() -> None:
    """Everything beat the base, so no policy would have a number relative to it."""
    said = [(ONE, BASE, 1, 20), (TWO, ONE, 1, 15), (TWO, ONE, -1, 10)]
    found = board(matches(said), [BASE, ONE, TWO])
    assert found.reference == ONE
    assert [(each.policy, each.side) for each in found.separated] == [(BASE, -1)]


def test_a_tie_connects_both_ways() -> None:
    said = [(ONE, BASE, 1, 30), (ONE, BASE, -1, 10), (TWO, ONE, 1, 12)]
    assert [each.policy for each in board(matches(said), [BASE, ONE, TWO]).separated] == [TWO]
    found = board(matches([*said, (TWO, ONE, 0, 2)]), [BASE, ONE, TWO])
    assert found.separated == []
    assert wins(of(found, TWO)) > wins(of(found, ONE))


def test_wins_of_one_side_alone_and_ties_have_no_finite_estimate_either() -> None:
    """P(loss) = 1 - sigmoid(eta + nu) would have to be 0."""
    found = board(matches([(ONE, BASE, 1, 20), (ONE, BASE, 0, 10)]), [BASE, ONE])
    assert (found.refused, found.standings, found.separated) == ("ties", [], [])


def drawn(rng: np.random.Generator, truth: NDArray[np.float64], nu: float) -> Matches:
    """400 judgments of 4 policies on 40 prompts by 15 labelers. Prompts and labelers each favor some policies."""
    n, prompts, labelers = 400, 40, 15
    prompt, labeler = rng.integers(0, prompts, n), rng.integers(0, labelers, n)
    a = rng.integers(0, 4, n)
    b = (a + rng.integers(1, 4, n)) % 4
    taste = truth + rng.normal(0, 0.9, (prompts, 4))[prompt] + rng.normal(0, 0.5, (labelers, 4))[labeler]
    rows = np.arange(n)
    eta = taste[rows, a] - taste[rows, b]
    chance = rng.random(n)
    outcome = (chance < rao_kupper.sigmoid(eta - nu)).astype(np.int64) - (chance > 1 - rao_kupper.sigmoid(-eta - nu))
    style = rng.normal(0, 0.2, (n, 4))
    return Matches(a, b, outcome, rng.choice([-1.0, 1.0], n), style, prompt, labeler)


def test_intervals_hold_the_truth_as_often_as_they_say_although_judgments_are_alike() -> None:
    """The policies are equal, so the truth is one half: 3 win rates on each of 200 boards.

    With coverage 0.95, 179 to 198 of 200 boards contain it (99.9%, binomial). Intervals that take judgments for
    independent contain it on far fewer boards.
    """
    rng = np.random.default_rng(20)
    held = np.zeros(3)
    plain = 0
    for _ in range(200):
        said = drawn(rng, np.zeros(4), 0.3)
        found = board(said, [0, 1, 2, 3])
        for place, policy in enumerate((1, 2, 3)):
            interval = of(found, policy).wins
            assert interval is not None
            held[place] += interval.low <= 0.5 <= interval.high
        eye = np.eye(4)
        fit = rao_kupper.fit((eye[said.a] - eye[said.b])[:, 1:], said.outcome)
        assert fit is not None
        plain += abs(fit.coefficients[0]) <= 1.96 * np.linalg.inv(fit.information)[0, 0] ** 0.5
    assert 179 <= held.min() <= held.max() <= 198
    assert plain < 179


def test_the_truth_is_found_on_a_large_board() -> None:
    rng = np.random.default_rng(21)
    n = 40_000
    a = rng.integers(0, 4, n)
    b = (a + rng.integers(1, 4, n)) % 4
    truth, effects, nu = np.array([0.0, 0.5, 1.0, -0.5]), np.array([0.4, 0.8, 0.0, 0.3, -0.2]), 0.4
    position, style = rng.choice([-1.0, 1.0], n), rng.normal(0, 0.3, (n, 4)) + 0.1 * (a - b)[:, None]
    eta = truth[a] - truth[b] + np.column_stack([position, style]) @ effects
    chance = rng.random(n)
    outcome = (chance < rao_kupper.sigmoid(eta - nu)).astype(np.int64) - (chance > 1 - rao_kupper.sigmoid(-eta - nu))
    said = Matches(a, b, outcome, position, style, rng.integers(0, 2000, n), rng.integers(0, 50, n))
    found = board(said, [0, 1, 2, 3])
    for policy in (1, 2, 3):
        standing = of(found, policy)
        assert standing.controlled is not None
        expected = float(rao_kupper.win_rate(truth[policy], nu))
        assert standing.controlled.value == pytest.approx(expected, abs=0.02)
        assert standing.controlled.low < expected < standing.controlled.high
    # Newer policies write longer answers here, which people like, so without control they look better than they are.
    assert of(found, 3).gap < -0.05
    assert [each.name for each in found.effects] == ["position", "length", "headers", "lists", "bold"]
    for effect, true in zip(found.effects, effects, strict=True):
        assert effect.wins.value == pytest.approx(float(rao_kupper.win_rate(true * effect.typical, nu)), abs=0.02)
