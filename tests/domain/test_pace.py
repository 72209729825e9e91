"""A run's speed and remaining time, by arithmetic on a clock that the test sets."""

import pytest

from app.domain.pace import Pace


def test_the_time_left_is_what_the_steps_so_far_took() -> None:
    pace = Pace(100.0)
    assert pace.report(100.0, 0, 10, "training") is True
    assert (pace.seconds_left, pace.tokens_per_second) == (None, None)
    for step in (1, 2, 3):
        pace.worked(500)
        assert pace.report(100.0 + 20 * step, step, 10, "training") is False
    assert pace.seconds_left == pytest.approx(7 * 20)
    assert pace.tokens_per_second == pytest.approx(1500 / 60)
    pace.report(300.0, 10, 10, "training")
    assert pace.seconds_left is None  # nothing is left


def test_activities_that_take_turns_have_each_their_own_pace() -> None:
    """Steps of 10 s, with measurements of held-out rows of 30 s between them."""
    pace, now = Pace(0.0), 0.0
    pace.report(now, 0, 100, "training")
    for step in range(1, 5):
        now += 10
        pace.report(now, 0, 3, "held-out")
        now += 30
        pace.report(now, step, 100, "training")
    assert pace.seconds_left == pytest.approx(96 * 10)


def test_a_run_that_goes_on_from_a_checkpoint_counts_only_what_it_did_itself() -> None:
    pace = Pace(0.0)
    pace.report(0.0, 50, 100, "training")
    pace.report(30.0, 55, 100, "training")
    assert pace.seconds_left == pytest.approx(45 * 30 / 5)


def test_a_count_that_begins_again_forgets_what_was_before() -> None:
    pace = Pace(0.0)
    pace.report(0.0, 0, 10, "sampling")
    pace.report(100.0, 10, 10, "sampling")
    pace.report(100.0, 0, 10, "sampling")
    assert pace.seconds_left is None
    pace.report(110.0, 5, 10, "sampling")
    assert pace.seconds_left == pytest.approx(10.0)


def test_nothing_is_said_of_the_first_seconds() -> None:
    pace = Pace(0.0)
    assert (pace.seconds_left, pace.tokens_per_second) == (None, None)
    pace.worked(7)  # before anything started
    pace.report(0.0, 0, 10, "training")
    pace.worked(7)
    pace.report(4.9, 1, 10, "training")
    assert (pace.seconds_left, pace.tokens_per_second) == (None, None)
