from app.domain import assignment


def test_the_scale_runs_from_one_side_to_the_other() -> None:
    assert assignment.scale(3, allow_tie=True) == (-3, -2, -1, 0, 1, 2, 3)
    assert assignment.scale(2, allow_tie=False) == (-2, -1, 1, 2)
    assert assignment.scale(1, allow_tie=True) == (-1, 0, 1)


def test_each_step_has_its_own_words_and_both_sides_the_same() -> None:
    for strengths in (1, 2, 3):
        steps = assignment.scale(strengths, allow_tie=True)
        assert len({assignment.words(step, strengths) for step in steps}) == strengths + 1
        assert all(assignment.words(step, strengths) == assignment.words(-step, strengths) for step in steps)
        assert assignment.words(strengths, strengths).endswith("better")
    assert assignment.words(0, 3) == "tie"


def test_a_swapped_preference_turns_round_and_back() -> None:
    assert assignment.canonical(2, swapped=False) == 2
    assert assignment.canonical(2, swapped=True) == -2  # the second shown was A
    assert assignment.canonical(0, swapped=True) == 0


def test_steps_as_shown() -> None:
    steps = assignment.steps(2, allow_tie=True)
    assert [step.key for step in steps] == ["1", "2", "3", "4", "5"]
    assert [step.label for step in steps] == [
        "First response much better",
        "First response better",
        "Tie",
        "Second response better",
        "Second response much better",
    ]
    assert [step.mark for step in steps] == ["2", "1", "=", "1", "2"]
