"""Dividing slots by shares: exact in the long run, never off by more than one slot, and no slot is wasted."""

from collections import Counter

import pytest

from app.domain.shares import quotas, slots


def test_every_kind_gets_its_share_over_many_seeds() -> None:
    shares = {"a": 1.0, "b": 0.5, "c": 0.0, "d": 2.5}
    counted = Counter(kind for seed in range(4000) for kind in slots(shares, 2, seed))
    assert set(counted) == {"a", "b", "d"}
    # 8,000 slots in proportions 1 : 0.5 : 2.5; at most 6 binomial standard deviations off, or less, being systematic.
    for kind, expected in {"a": 2000, "b": 1000, "d": 5000}.items():
        assert abs(counted[kind] - expected) < 200


def test_no_seed_is_a_slot_off() -> None:
    for seed in range(200):
        counted = Counter(slots({"a": 1, "b": 2, "c": 1}, 6, seed))
        assert counted["b"] == 3
        assert counted["a"] in (1, 2)
        assert counted["c"] in (1, 2)
        assert slots({"a": 1, "b": 1}, 2, seed) == ["a", "b"]


def test_slots_stand_in_the_order_of_the_shares_and_repeat() -> None:
    assert slots({"b": 1, "a": 1}, 4, seed=3) == ["b", "b", "a", "a"]
    assert slots({"a": 0.3, "b": 0.7}, 5, seed=8) == slots({"a": 0.3, "b": 0.7}, 5, seed=8)
    assert slots({"a": 1}, 0, seed=0) == []
    with pytest.raises(ValueError, match="above 0"):
        slots({"a": 0.0}, 1, seed=0)


@pytest.mark.parametrize(
    ("available", "shares", "n", "expected"),
    [
        ({"easy": 50, "hard": 50}, {"easy": 1, "hard": 1}, 10, {"easy": 5, "hard": 5}),
        ({"easy": 50, "hard": 50}, {"easy": 1, "hard": 3}, 10, {"easy": 3, "hard": 7}),  # 2.5 and 7.5: the first is up
        ({"easy": 50, "hard": 2}, {"easy": 1, "hard": 1}, 10, {"easy": 8, "hard": 2}),
        ({"easy": 3, "hard": 2}, {"easy": 1, "hard": 1}, 10, {"easy": 3, "hard": 2}),
        ({"easy": 50, "hard": 2}, {"easy": 0, "hard": 1}, 10, {"easy": 0, "hard": 2}),
        ({"easy": 50}, {"easy": 1, "hard": 9}, 10, {"easy": 10}),
        ({"easy": 5, "hard": 5}, {"easy": 1, "hard": 1}, 0, {"easy": 0, "hard": 0}),
        ({}, {"easy": 1}, 5, {}),
    ],
)
def test_quotas(available: dict[str, int], shares: dict[str, float], n: int, expected: dict[str, int]) -> None:
    assert quotas(available, shares, n) == expected
