import pytest

from app.domain.consensus import consensus, probability_b
from app.domain.slices import masks, of_prompt


def test_consensus_is_the_mean_and_the_smoothed_share() -> None:
    # Three for B, one tie, one for A: (3 + 1/2 + 1/2) / (5 + 1).
    found = consensus([3, 1, 2, 0, -1])
    assert found is not None
    assert found.preference == pytest.approx(1.0)
    assert found.p_b == pytest.approx(4 / 6)
    assert found.weight == 1.0


def test_probability_is_symmetric_and_never_certain() -> None:
    for votes in ([1], [2, 2, 2], [3, -1, 0], [0, 0]):
        assert probability_b(votes) + probability_b([-v for v in votes]) == pytest.approx(1)
    assert probability_b([1]) == pytest.approx(3 / 4)
    assert probability_b([0]) == pytest.approx(1 / 2)
    assert probability_b([1] * 1000) < 1


def test_a_verdict_stands_in_place_of_the_judgments() -> None:
    found = consensus([3, 3, -1], verdict=-2)
    assert found is not None
    assert found.preference == -2.0
    assert found.p_b == pytest.approx(0.5 / 5)
    tie = consensus([3, 3], verdict=0)
    assert tie is not None
    assert tie.p_b == pytest.approx(0.5)


def test_nothing_said_is_no_consensus() -> None:
    assert consensus([]) is None


def test_slices_leave_out_what_a_prompt_does_not_have() -> None:
    assert of_prompt("safety", "hard", None, "train") == {"domain": "safety", "difficulty": "hard", "split": "train"}
    found = masks({"domain": ["b", "a", "", "b"], "split": ["t", "t", "t", "h"]})
    assert {key: mask.tolist() for key, mask in found.items()} == {
        ("domain", "a"): [False, True, False, False],
        ("domain", "b"): [True, False, False, True],
        ("split", "h"): [False, False, False, True],
        ("split", "t"): [True, True, True, False],
    }
