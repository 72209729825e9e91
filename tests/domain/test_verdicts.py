"""The verdict on a round, according to its table."""

import pytest

from app.domain.intervals import Interval
from app.domain.sequence import preference
from app.domain.verdicts import LEAST_PROMPTS, by_reward_model, verdict

HIGHER, SAME, LOWER = Interval(0.4, 0.1, 0.7), Interval(0.1, -0.2, 0.4), Interval(-0.4, -0.7, -0.1)


@pytest.mark.parametrize(
    ("values", "word"), [([1.0] * 12, "better"), ([0.5] * LEAST_PROMPTS, "not shown"), ([0.0] * 12, "worse")]
)
@pytest.mark.parametrize("difference", [None, HIGHER, LOWER])
def test_people_decide_where_they_have_judged_enough(
    values: list[float], word: str, difference: Interval | None
) -> None:
    people = preference(values)
    assert people is not None
    assert verdict(people, difference) == (word, "people", (people.value, people.low, people.high))


@pytest.mark.parametrize(("difference", "word"), [(HIGHER, "better"), (SAME, "not shown"), (LOWER, "worse")])
def test_otherwise_it_is_the_reward_models_word(difference: Interval, word: str) -> None:
    for values in ([], [1.0] * (LEAST_PROMPTS - 1), [0.0] * (LEAST_PROMPTS - 1)):
        assert verdict(preference(values), difference) == (word, "reward model", difference)
    assert by_reward_model(difference) == (word, "reward model", difference)


def test_no_fewer_prompts_than_are_asked_for_could_decide() -> None:
    for n, word in ((LEAST_PROMPTS - 1, "not shown"), (LEAST_PROMPTS, "better")):
        found = preference([1.0] * n)
        assert found is not None
        assert found.word == word


def test_an_interval_that_touches_even_shows_nothing() -> None:
    touching = by_reward_model(Interval(-0.2, -0.4, 0.0))
    assert touching is not None
    assert touching.word == "not shown"


def test_what_nobody_measured_has_no_verdict() -> None:
    assert verdict(None, None) is None
    assert verdict(preference([1.0] * 3), None) is None
