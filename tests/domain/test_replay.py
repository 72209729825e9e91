"""Which comparisons a round reads: expected numbers from the definitions of share and age."""

import numpy as np
import pytest

from app.domain.replay import Candidates, Reading, choose, counts

ROUNDS = (1, 2, 4)  # round 3 ended without a policy


Row = tuple[int, int, int, int, int]  # the fields of `Candidates`
NEW = 0


def candidates(split: str, *first_rounds: tuple[int, int]) -> list[Row]:
    rows: list[Row] = []
    for first_round, n in first_rounds:
        begin = 1000 * (first_round or 9) + 500 * (split == "heldout")
        rows += [(begin + i, int(split == "heldout"), 1, 2, first_round) for i in range(n)]
    return rows


def chosen(rows: list[Row], rounds: tuple[int, ...], reading: Reading) -> list[Row]:
    found = choose(Candidates(*np.array(rows, np.int64).T), rounds, reading)
    return list(zip(*(column.tolist() for column in found), strict=True))


def counted(rows: list[Row]) -> dict[str, object]:
    return counts(Candidates(*np.array(rows, np.int64).reshape(-1, 5).T))


ALL = [*candidates("train", (1, 100), (2, 40), (4, 60), (NEW, 120)), (1, 1, 0, 1, NEW)]


def read(**reading: object) -> dict[str, object]:
    return counted(chosen(ALL, ROUNDS, Reading(**reading)))  # type: ignore[arg-type]


def test_without_limits_everything_is_read() -> None:
    assert chosen(ALL, ROUNDS, Reading()) == ALL
    assert read() == {
        "train": 320,
        "heldout": 1,
        "ties": 1,
        "winners": 320,
        "judgments": 641,
        "new": 120,
        "earlier": {"1": 100, "2": 40, "4": 60},
    }


@pytest.mark.parametrize(
    ("share", "earlier"), [(0, 0), (0.2, 30), (0.25, 40), (0.5, 120), (0.6, 180), (0.9, 200), (1, 200)]
)
def test_the_replayed_share_is_of_all_that_is_trained_on(share: float, earlier: int) -> None:
    found = read(replay_share=share)
    assert (found["new"], found["train"]) == (120, 120 + earlier)


@pytest.mark.parametrize(("age", "kept"), [(1, {"4"}), (2, {"2", "4"}), (3, {"1", "2", "4"})])
def test_age_counts_the_rounds_since_that_have_trained(age: int, kept: set[str]) -> None:
    assert set(read(replay_rounds=age)["earlier"]) == kept  # type: ignore[call-overload]


def test_a_limit_cuts_new_and_replayed_in_proportion() -> None:
    found = read(train_limit=32)  # 120 of 320 are new: 12 of 32
    assert (found["train"], found["new"]) == (32, 12)
    found = read(train_limit=30, replay_share=0.25)  # 120 new, 40 replayed: at most a quarter of 30 is replayed
    assert (found["train"], found["new"]) == (30, 23)


def test_the_choice_depends_on_the_seed_alone_and_keeps_the_order() -> None:
    found = chosen(ALL, ROUNDS, Reading(train_limit=50, seed=1))
    assert found == chosen(ALL, ROUNDS, Reading(train_limit=50, seed=1))
    assert found == chosen(ALL[::-1], ROUNDS, Reading(train_limit=50, seed=1))[::-1]
    assert found != chosen(ALL, ROUNDS, Reading(train_limit=50, seed=2))
    assert [row for row in ALL if row in found] == found


def test_heldout_comparisons_are_limited_apart_and_never_replayed() -> None:
    rows = candidates("heldout", (1, 30), (NEW, 10)) + candidates("train", (NEW, 5))
    found = counted(chosen(rows, (1,), Reading(heldout_limit=8, replay_share=0)))
    assert (found["heldout"], found["train"], found["earlier"]) == (8, 5, {})


def test_nothing_new_and_no_replay_is_nothing() -> None:
    assert counted(chosen(candidates("train", (1, 30)), (1,), Reading(replay_share=0.5)))["train"] == 0
