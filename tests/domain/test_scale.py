from app.domain import scale


def test_the_scale_runs_from_one_side_to_the_other() -> None:
    assert scale.values(3, allow_tie=True) == (-3, -2, -1, 0, 1, 2, 3)
    assert scale.values(2, allow_tie=False) == (-2, -1, 1, 2)
    assert scale.values(1, allow_tie=True) == (-1, 0, 1)
    assert scale.values(4, allow_tie=False) == (-4, -3, -2, -1, 1, 2, 3, 4)


def test_each_step_has_its_own_words_and_both_sides_the_same() -> None:
    for strengths in (1, 2, 3, 4):
        steps = scale.values(strengths, allow_tie=True)
        assert len({scale.words(step, strengths) for step in steps}) == strengths + 1
        assert all(scale.words(step, strengths) == scale.words(-step, strengths) for step in steps)
        assert scale.words(strengths, strengths).endswith("better")
    assert scale.words(0, 3) == "tie"
    assert [scale.words(n, 4) for n in (1, 2, 3, 4)] == ["slightly better", "better", "much better", "far better"]


def test_a_swapped_preference_turns_round_and_back() -> None:
    assert scale.canonical(2, swapped=False) == 2
    assert scale.canonical(2, swapped=True) == -2  # the second shown was A
    assert scale.canonical(0, swapped=True) == 0


def test_steps_as_shown() -> None:
    steps = scale.steps(2, allow_tie=True)
    assert [step.key for step in steps] == ["1", "2", "3", "4", "5"]
    assert [step.label for step in steps] == [
        "First response much better",
        "First response better",
        "Tie",
        "Second response better",
        "Second response much better",
    ]
    assert [step.mark for step in steps] == ["2", "1", "=", "1", "2"]
