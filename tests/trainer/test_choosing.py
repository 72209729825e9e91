"""The choice of answers to learn from; expected values are counted by hand."""

import pytest
import torch

from trainer.algorithms.choosing import best, best_against_worst, controlled_scores

SCORES = [0.0, 3.0, 1.0, -2.0, 2.0, 4.0]
TEXTS = ["a", "b", "c", "d", "e", "f"]
DONE = [True] * 6


def test_the_best_meet_the_worst_and_so_on_inwards() -> None:
    assert best_against_worst(SCORES, DONE, TEXTS, 2, 0.0) == [(5, 3), (1, 0)]
    assert best_against_worst(SCORES, DONE, TEXTS, 10, 0.0) == [(5, 3), (1, 0), (4, 2)]


def test_pairs_that_are_too_close_are_left_out() -> None:
    # Differences, from the outermost pair to the innermost: 6, 3, 1.
    assert best_against_worst(SCORES, DONE, TEXTS, 10, 1.0) == [(5, 3), (1, 0)]
    assert best_against_worst(SCORES, DONE, TEXTS, 10, 3.0) == [(5, 3)]
    assert best_against_worst([1.0] * 6, DONE, TEXTS, 10, 0.0) == []


def test_a_cut_answer_is_rejected_at_most() -> None:
    cut = [True, True, True, False, True, False]
    assert best_against_worst(SCORES, cut, TEXTS, 2, 0.0) == [(1, 3), (4, 0)]
    assert best_against_worst(SCORES, [False] * 6, TEXTS, 2, 0.0) == []
    assert best(SCORES, cut, TEXTS, 2) == [1, 4]


def test_a_text_stands_on_a_side_once_and_never_against_itself() -> None:
    texts = ["same", "same", "c", "same", "c", "f"]
    # The best distinct ones are f, same (3.0), c (2.0); the worst same (-2.0), c (1.0), f.
    assert best_against_worst(SCORES, DONE, texts, 10, 0.0) == [(5, 3), (1, 2)]
    assert best([2.0, 2.0, 1.0], [True] * 3, ["x", "x", "y"], 2) == [0, 2]


def test_length_and_a_missing_end_cost() -> None:
    scores, lengths = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    finished = torch.tensor([True, True, True, False])
    # Mean 25, standard deviation sqrt(125): the first is 15 / 11.18 = 1.342 below it.
    found = controlled_scores(scores, lengths, finished, 0.5, 2.0).tolist()
    assert found == pytest.approx([1.6708, 1.2236, 0.7764, -1.6708], abs=1e-4)
    assert controlled_scores(scores, torch.full((4,), 7.0), finished, 0.5, 0.0).tolist() == [1.0] * 4


def test_equal_scores_make_no_answer_the_best() -> None:
    texts = ["a", "b", "c"]
    assert best([1.0, 1.0, 1.0], [True] * 3, texts, 2) == []
    assert best([1.0, 2.0, 1.0], [True] * 3, texts, 1) == [1]
