"""Hidden preferences and the win rate, against values worked out by hand."""

import random

import numpy as np
import pytest

from app.simulation.preference import (
    PREFERENCES,
    SimulatedLabeler,
    brief_and_warm,
    concise,
    detailed,
    direct,
    example,
    finished,
    on_topic,
    repetition,
    strength_of,
    whole_sentences,
)
from app.simulation.statistics import win_rate

QUESTION = "What is the capital of France?"


def test_repetition_counts_trigrams_seen_before() -> None:
    assert repetition("one two three four") == 0
    assert repetition("a b c a b c") == 0.25  # trigrams abc bca cab abc: one of four again
    assert repetition("") == 0


def test_on_topic_is_the_share_of_the_questions_own_words() -> None:
    assert on_topic(QUESTION, "France has Paris.") == 0.5  # of “capital” and “france”
    assert on_topic("What is it?", "Anything.") == 0


def test_concise_is_the_sum_of_its_parts() -> None:
    # 7 words, both topic words, finished, no trigram twice: 2 + 1 - 0.06 * 6
    assert concise(QUESTION, "The capital of France is Paris.") == pytest.approx(2 + 1 - 0.36)
    assert concise(QUESTION, "The capital of France is Paris") == pytest.approx(2 - 0.36)
    assert concise(QUESTION, " ") == -6


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("Paris.", True),
        ("“Paris!” ", True),
        ("It is Paris", False),
        ("1. Paris\n2.", False),
        ("In 1990.", True),
        ("", False),
    ],
)
def test_a_text_is_finished_when_a_sentence_ends_it(text: str, end: bool) -> None:
    assert finished(text) is end


def test_whole_sentences_end_where_the_last_one_does() -> None:
    assert whole_sentences("One. Two is cut") == "One."
    assert whole_sentences('He said "go!" and then') == 'He said "go!"'
    assert whole_sentences("All. Done.") == "All. Done."
    assert whole_sentences("Nothing ends") == ""


def test_detailed_counts_whole_sentences() -> None:
    # The first sentence has 6 words; three more that were cut off add nothing.
    whole = "The capital of France is Paris."
    assert detailed(QUESTION, whole) == pytest.approx(2 + 0.36)
    assert detailed(QUESTION, f"{whole} It lies on") == pytest.approx(2 + 0.36)
    assert detailed(QUESTION, f"{whole} It lies on water.") == pytest.approx(2 + 0.6)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("The capital of France has sights, for example the Louvre.", True),
        ("The capital of France is a city such as London is.", True),
        ("The capital of France has museums, parks and cafés.", True),
        ("The capital of France is like a museum.", True),
        ("The capital of France would like a word.", False),
        ("The capital of France is Paris.", False),
        ("The capital of France is one, for example.", False),
    ],
)
def test_example_likes_answers_that_give_one(text: str, given: bool) -> None:
    assert example(QUESTION, text) == pytest.approx(2 + 1 + 2 * given)


def test_an_example_that_was_cut_off_counts_for_nothing() -> None:
    assert example(QUESTION, "The capital of France. For example the big tower") == pytest.approx(2)


def test_brief_and_warm_pays_for_signs_of_warmth_and_charges_words() -> None:
    # 6 words without a sign; then 3 signs (greeting, exclamation, you) in 13 words; a fourth sign adds only its words.
    assert brief_and_warm(QUESTION, "The capital of France is Paris.") == pytest.approx(3 - 0.3)
    warm = "Hello! The capital of France is Paris, as you may know by now."
    assert brief_and_warm(QUESTION, warm) == pytest.approx(3 + 2.4 - 0.65)
    assert brief_and_warm(QUESTION, f"{warm} Enjoy it.") == pytest.approx(3 + 2.4 - 0.75)
    assert brief_and_warm(QUESTION, "") == -6


@pytest.mark.parametrize(
    ("text", "cost"),
    [
        ("The capital of France is Paris.", 0),
        ("Sure, the capital of France is Paris.", 1.5),
        ("As an AI, I know the capital of France.", 2.5),
        ("The capital of France is my home.", 1),
    ],
)
def test_direct_charges_preambles_and_the_first_person(text: str, cost: float) -> None:
    assert direct(QUESTION, text) == pytest.approx(3 - cost)


@pytest.mark.parametrize("name", PREFERENCES)
def test_no_answer_gains_by_being_cut_off(name: str) -> None:
    """What a finished answer would go on to say, cut in the middle of its sentence."""
    whole = "Paris, as you know, is the capital of France!"
    assert PREFERENCES[name](QUESTION, f"{whole} It has for example the Louvre and great") <= PREFERENCES[name](
        QUESTION, whole
    )


@pytest.mark.parametrize(
    ("difference", "strength"),
    [(0, 0), (0.1, 0), (0.2, 1), (-0.9, -1), (1.5, 2), (-2.5, -3), (40, 3)],
)
def test_strength_grows_by_one_a_unit(difference: float, strength: int) -> None:
    assert strength_of(difference) == strength


def test_noise_and_position_bias_have_the_stated_rates() -> None:
    def always_right(_question: str, text: str) -> float:
        return 10.0 * (text == "right")

    def labeler(noise: float, bias: float) -> SimulatedLabeler:
        return SimulatedLabeler(always_right, noise, bias, random.Random(1))

    def share_left(noise: float, bias: float) -> float:
        one = labeler(noise, bias)
        return float(np.mean([one.judge("", "left", "right") < 0 for _ in range(4000)]))

    assert share_left(0, 0) == 0
    # 4000 draws: a standard error under 0.008.
    assert share_left(0.2, 0) == pytest.approx(0.1, abs=0.03)
    assert share_left(0, 0.3) == pytest.approx(0.3, abs=0.03)
    assert labeler(0, 0).judge("", "left", "right") == 3


def test_a_ranking_follows_the_score_the_places_or_chance() -> None:
    texts = ["bb", "a", "cccc", "ddd"]

    def ranks(noise: float, bias: float) -> list[list[int]]:
        one = SimulatedLabeler(length, noise, bias, random.Random(1))
        return [one.rank("", texts) for _ in range(2000)]

    assert ranks(0, 0)[0] == [3, 4, 1, 2]  # longest first
    assert ranks(0, 1)[0] == [1, 2, 3, 4]  # as they stand
    # At random each response is best a quarter of the time, with a standard error under 0.01.
    assert np.mean([each[0] == 1 for each in ranks(1, 0)]) == pytest.approx(0.25, abs=0.04)


def length(_question: str, text: str) -> float:
    return len(text)


def test_win_rate_of_known_samples() -> None:
    questions = {1: "", 2: "", 3: ""}
    # Prompt 1: 2 > 1, 2 = 2 -> 0.75. Prompt 2: wins all. Prompt 3 has no old samples.
    result = win_rate(length, questions, {1: ["xx"], 2: ["xxx"], 3: ["x"]}, {1: ["x", "xx"], 2: ["x"]})
    assert result is not None
    assert result.rate == pytest.approx(0.875)
    assert result.prompts == 2
    # With two prompts, the bootstrap's means are 0.75, 0.875 and 1 with shares 1/4, 1/2, 1/4.
    assert (result.low, result.high) == (0.75, 1.0)


def test_win_rate_of_equal_policies_is_one_half() -> None:
    same = {n: ["a", "bb", "ccc"] for n in range(10)}
    assert win_rate(length, dict.fromkeys(same, ""), same, same) == (0.5, 0.5, 0.5, 10)
    assert win_rate(length, {}, {}, {}) is None
