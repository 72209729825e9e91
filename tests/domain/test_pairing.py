"""The choice of pairs: all pairs if they are few, spread if they are limited, never two equal texts."""

from collections import Counter
from itertools import combinations

from app.domain.pairing import POLICIES, Sample, choose_pairs, choose_ranking, pairs_across, pairs_within


def of(*texts: str, first_id: int = 1) -> list[Sample]:
    return [Sample(first_id + i, text) for i, text in enumerate(texts)]


def test_all_pairs_are_asked_when_the_limit_allows() -> None:
    assert sorted(pairs_within(of("a", "b", "c", "d"), 100, seed=0)) == list(combinations([1, 2, 3, 4], 2))


def test_two_pairs_of_four_samples_show_each_sample_once() -> None:
    for seed in range(20):
        pairs = pairs_within(of("a", "b", "c", "d"), 2, seed)
        assert Counter(i for pair in pairs for i in pair) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_any_number_of_pairs_shows_the_samples_equally_often() -> None:
    for size in (3, 5, 6, 8):
        for limit in range(1, size * (size - 1) // 2 + 1):
            pairs = pairs_within(of(*"abcdefgh"[:size]), limit, seed=limit)
            assert len(set(pairs)) == limit
            seen = Counter({i + 1: 0 for i in range(size)})
            seen.update(i for pair in pairs for i in pair)
            assert max(seen.values()) - min(seen.values()) <= 1 + size % 2


def test_equal_texts_are_never_a_pair_and_differ_in_more_than_white_space() -> None:
    assert pairs_within(of("same", "same", " same\n"), 10, seed=0) == []
    assert pairs_within(of("same", "other", "same"), 10, seed=0) == [(1, 2)]


def test_the_same_seed_gives_the_same_pairs_in_any_order_of_the_samples() -> None:
    samples = of(*"abcdef")
    assert pairs_within(samples, 3, seed=7) == pairs_within(samples[::-1], 3, seed=7)
    assert len({tuple(pairs_within(samples, 3, seed)) for seed in range(30)}) > 5


def test_pairs_across_take_one_of_each_side_spread_over_both() -> None:
    old, new = of("a", "b", "c"), of("d", "e", "f", first_id=10)
    pairs = pairs_across(new, old, 3, seed=1)
    assert Counter(i for pair in pairs for i in pair) == {1: 1, 2: 1, 3: 1, 10: 1, 11: 1, 12: 1}
    assert all(a < 10 <= b for a, b in pairs)


def test_pairs_across_leave_out_a_response_the_old_policy_gave_too() -> None:
    assert pairs_across(of("a", first_id=5), of("a"), 5, seed=0) == []
    assert pairs_across(of("a", "b", first_id=5), of("a"), 5, seed=0) == [(1, 6)]


def test_no_samples_give_no_pairs() -> None:
    assert pairs_within([], 3, seed=0) == []
    assert pairs_within(of("alone"), 3, seed=0) == []
    assert pairs_across([], of("a"), 3, seed=0) == []


# --- policies --------------------------------------------------------------------------------------------------------


def scored(*rewards: tuple[float, ...]) -> list[Sample]:
    return [Sample(1 + i, f"text {i}", each) for i, each in enumerate(rewards)]


ONLY = {policy: {policy: 1.0} for policy in POLICIES}


def test_near_misses_come_closest_first() -> None:
    chosen = choose_pairs(scored((0.0,), (10.0,), (11.0,), (3.0,)), [], 3, ONLY["near_miss"], seed=0)
    assert [choice.ids for choice in chosen] == [(2, 3), (1, 4), (2, 4)]
    assert [choice.selection["gap"] for choice in chosen] == [1.0, 3.0, 7.0]


def test_uncertain_pairs_are_those_whose_difference_the_heads_dispute() -> None:
    # Heads that disagree by a constant agree on every difference: samples 1 and 2.
    samples = scored((0.0, 5.0), (1.0, 6.0), (4.0, 5.0))
    chosen = choose_pairs(samples, [], 3, ONLY["uncertain"], seed=0)
    assert {choice.ids: choice.selection["variance"] for choice in chosen} == {(1, 3): 4.0, (2, 3): 4.0, (1, 2): 0.0}
    assert chosen[-1].ids == (1, 2)


def test_delta_ucb_asks_first_about_the_widest_gap_between_bounds() -> None:
    # Means 0, 1, 4 and 1; deviations 0, 1, 0 and 3. The gaps between bounds are 2, 1 + 2, ..., computed below.
    samples = scored((0.0, 0.0), (0.0, 2.0), (4.0, 4.0), (-2.0, 4.0))
    chosen = choose_pairs(samples, [], 6, ONLY["delta_ucb"], seed=0)
    assert {choice.ids: choice.selection["delta"] for choice in chosen} == {
        (3, 4): 3 + 2 * 3.0,
        (2, 4): 0 + 2 * (1.0 + 3.0),
        (1, 4): 1 + 2 * 3.0,
        (2, 3): 3 + 2 * 1.0,
        (1, 3): 4.0,
        (1, 2): 1 + 2 * 1.0,
    }
    assert [choice.selection["delta"] for choice in chosen] == [9, 8, 7, 5, 4, 3]


def test_drts_pairs_the_best_with_the_worst_where_heads_agree_and_others_as_often_as_they_may_be() -> None:
    certain = scored((0.0, 0.0), (5.0, 5.0), (2.0, 2.0))
    for seed in range(20):
        first, *rest = choose_pairs(certain, [], 3, ONLY["drts"], seed)
        assert first.ids == (1, 2)
        # No other pair is possible: the other two pairs are random, and marked as such.
        assert [choice.selection["policy"] for choice in rest] == ["random", "random"]
    # Sample 3 has mean 4 and deviation 1. It is drawn as the best if 4 + 2z > 5, so z > 1/2: a quarter of the time. It
    # is drawn as the worst if -4 + 2z > 0, which never happens.
    unsure = scored((0.0, 0.0), (5.0, 5.0), (3.0, 5.0))
    firsts = [choose_pairs(unsure, [], 1, ONLY["drts"], seed)[0].ids for seed in range(2000)]
    assert set(firsts) == {(1, 2), (1, 3)}
    assert abs(firsts.count((1, 3)) / 2000 - 0.25) < 0.05  # five standard deviations


def test_shares_mix_the_policies_and_no_pair_comes_twice() -> None:
    samples, old = scored(*[(float(n * n), float(n)) for n in range(5)]), of("a", "b", first_id=50)
    counted: Counter[str] = Counter()
    for seed in range(300):
        chosen = choose_pairs(samples, old, 4, {"random": 1, "near_miss": 1, "new_against_old": 2}, seed)
        assert len({choice.ids for choice in chosen}) == 4
        counted.update(choice.selection["policy"] for choice in chosen)
    assert counted["new_against_old"] == 600
    assert counted["random"] == counted["near_miss"] == 300
    assert "uncertain" not in counted


def test_which_pair_chance_takes_does_not_depend_on_the_draw_of_the_policy() -> None:
    """One seed draws both. Among seeds that draw a random pair, each of three pairs must be equally frequent."""
    samples = scored((0.0,), (1.0,), (3.0,))
    counted: Counter[tuple[int, ...]] = Counter()
    for seed in range(3000):
        (choice,) = choose_pairs(samples, [], 1, {"random": 1, "near_miss": 1}, seed)
        if choice.selection["policy"] == "random":
            counted[choice.ids] += 1
    assert counted.total() > 1300
    for pair in ((1, 2), (1, 3), (2, 3)):
        assert abs(counted[pair] / counted.total() - 1 / 3) < 0.065  # five standard deviations


def test_a_policy_that_runs_dry_gives_way_to_chance_and_says_so() -> None:
    new, old = of("a", "b", "c", first_id=5), of("x")
    chosen = choose_pairs(new, old, 6, ONLY["new_against_old"], seed=1)
    assert [choice.selection["policy"] for choice in chosen] == ["new_against_old"] * 3 + ["random"] * 3
    assert chosen[-1].selection == {
        "policy": "random",
        "wanted": "new_against_old",
        "because": "all such pairs are taken",
    }
    assert choose_pairs(of("a", "a"), [], 3, ONLY["random"], seed=0) == []


def test_the_same_seed_chooses_the_same_in_any_order() -> None:
    samples = scored(*[(float(n), float(-n)) for n in range(6)])
    shares = {"random": 1.0, "near_miss": 1.0, "uncertain": 1.0}
    for seed in range(20):
        assert choose_pairs(samples, [], 4, shares, seed) == choose_pairs(samples[::-1], [], 4, shares, seed)


def test_rankings_by_policy() -> None:
    samples = scored((0.0, 0.0), (5.0, 5.0), (5.5, 9.5), (5.2, 5.2), (40.0, 40.0))
    nearest = choose_ranking(samples, [], 3, ONLY["near_miss"], seed=0)
    assert nearest is not None
    assert sorted(nearest.ids) == [2, 3, 4]  # rewards 5, 5.2 and 7.5
    disputed = choose_ranking(samples, [], 2, ONLY["uncertain"], seed=0)
    assert disputed is not None
    assert 3 in disputed.ids  # the one response on which the heads differ
    mixed = choose_ranking(samples, of("x", "y", "z", first_id=50), 4, ONLY["new_against_old"], seed=0)
    assert mixed is not None
    assert sum(id_ >= 50 for id_ in mixed.ids) == 2
    plain = choose_ranking(of(*"abcdefghij"), [], 9, ONLY["random"], seed=0)
    assert plain is not None
    assert len(set(plain.ids)) == 9
    assert choose_ranking(of("a", "a "), [], 4, ONLY["random"], seed=0) is None


def test_a_ranking_without_what_it_needs_says_so() -> None:
    chosen = choose_ranking(of("a", "b", "c"), [], 3, ONLY["near_miss"], seed=0)
    assert chosen is not None
    assert chosen.selection["wanted"] == "near_miss"
    same = choose_ranking(of("a", "b", "c", first_id=9), of("a", "b"), 3, ONLY["new_against_old"], seed=0)
    assert same is not None
    assert same.selection["policy"] == "random"
