"""Rankings and the preferences that follow from them, by hand."""

import itertools

import pytest

from app.domain.ranking import preference, ranks


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [(1, 2, -1), (2, 1, 1), (3, 3, 0), (1, None, -1), (None, 1, 1), (None, None, None), (9, None, -1)],
)
def test_a_pair_of_ranks_says_one_preference(a: int | None, b: int | None, said: int | None) -> None:
    assert preference(a, b) == said


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([3, 1, 2], [3, 1, 2]),
        ([2, 9, 2], [1, 2, 1]),  # gaps close
        ([1, 1, 1], [1, 1, 1]),
        ([None, 1, None], [None, 1, None]),
        ([2, 1, None], [2, 1, 3]),  # a single unranked one is below the rest, as the last one is
        ([None, 4, None, 2, 4], [None, 2, None, 1, 2]),
    ],
)
def test_the_ranks_come_back_from_their_preferences(given: list[int | None], found: list[int | None]) -> None:
    items = list(range(10, 10 + len(given)))
    pairs = {
        (items[i], items[j]): preference(given[i], given[j]) for i, j in itertools.combinations(range(len(given)), 2)
    }
    assert ranks(items, pairs) == found


def test_every_ranking_of_four_says_what_its_ranks_say() -> None:
    places = range(4)
    for given in itertools.product([None, 1, 2, 3, 4], repeat=4):
        if all(rank is None for rank in given):
            continue
        pairs = {(i, j): preference(given[i], given[j]) for i, j in itertools.combinations(places, 2)}
        again = ranks(list(places), pairs)
        assert {(i, j): preference(again[i], again[j]) for i, j in itertools.combinations(places, 2)} == pairs
