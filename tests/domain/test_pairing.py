"""Which pairs are asked: all of them when few, spread when limited, never two equal texts."""

from collections import Counter
from itertools import combinations

from app.domain.pairing import Sample, pairs_across, pairs_within


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
