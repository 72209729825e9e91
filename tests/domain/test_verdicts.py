"""The verdict on a round, by its table."""

import pytest

from app.domain.intervals import Interval
from app.domain.verdicts import LEAST_COMPARISONS, by_reward_model, verdict

BETTER, EVEN, WORSE = Interval(0.7, 0.55, 0.8), Interval(0.55, 0.45, 0.65), Interval(0.3, 0.2, 0.45)
HIGHER, SAME, LOWER = Interval(0.4, 0.1, 0.7), Interval(0.1, -0.2, 0.4), Interval(-0.4, -0.7, -0.1)


@pytest.mark.parametrize(("win_rate", "word"), [(BETTER, "better"), (EVEN, "not shown"), (WORSE, "worse")])
@pytest.mark.parametrize("difference", [None, HIGHER, LOWER])
def test_people_decide_where_they_have_judged_enough(
    win_rate: Interval, word: str, difference: Interval | None
) -> None:
    assert verdict(win_rate, LEAST_COMPARISONS, difference) == (word, "people", win_rate)


@pytest.mark.parametrize(("difference", "word"), [(HIGHER, "better"), (SAME, "not shown"), (LOWER, "worse")])
def test_otherwise_it_is_the_reward_models_word(difference: Interval, word: str) -> None:
    for win_rate, comparisons in ((None, 0), (BETTER, LEAST_COMPARISONS - 1), (WORSE, LEAST_COMPARISONS - 1)):
        assert verdict(win_rate, comparisons, difference) == (word, "reward model", difference)
    assert by_reward_model(difference) == (word, "reward model", difference)


def test_an_interval_that_touches_even_shows_nothing() -> None:
    assert verdict(Interval(0.6, 0.5, 0.7), 30, None) == ("not shown", "people", (0.6, 0.5, 0.7))
    touching = by_reward_model(Interval(-0.2, -0.4, 0.0))
    assert touching is not None
    assert touching.word == "not shown"


def test_what_nobody_measured_has_no_verdict() -> None:
    assert verdict(None, 0, None) is None
    assert verdict(BETTER, 3, None) is None
