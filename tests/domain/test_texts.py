"""Figures of a text, counted by hand."""

import pytest

from app.domain import texts


def test_repetition_counts_trigrams_that_came_before() -> None:
    assert texts.repetition("a b c d e") == 0
    assert texts.repetition("a b c a b c a b c") == pytest.approx(4 / 7)  # 7 trigrams, 3 different ones
    assert texts.repetition("No no no no") == pytest.approx(1 / 2)
    assert texts.repetition("") == texts.repetition("one two three") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I can’t assist with this request.", True),
        ("Unfortunately, I cannot do it.", True),
        ("As an AI, I have no body.", True),
        ("It is not appropriate to say so.", True),
        ("You can kill a Python process with kill -9.", False),
        ("He said he was sorry.", False),
        ("I can swim.", False),
        ("x " * 150 + "I cannot help.", False),
        ("Unfortunately, it rained in 1912.", False),
    ],
)
def test_refusals_are_found_by_phrases(text: str, expected: bool) -> None:
    assert texts.refuses(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Great question! Water boils at 100 degrees.", True),
        ("You’re absolutely right, and I was wrong.", True),
        ("What a wonderful thought.", True),
        ("Water boils at 100 degrees. That is a great answer.", False),
        ("The right side of the road.", False),
        ("x " * 150 + "Great question!", False),
    ],
)
def test_flattery_is_found_at_the_beginning(text: str, expected: bool) -> None:
    assert texts.flatters(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It depends on the day.", True),
        ("Boil it. " * 60 + "It’s important to note that water is hot.", True),
        ("Please consult a doctor.", True),
        ("The consultation was long.", False),
        ("Paris.", False),
    ],
)
def test_hedging_is_found_anywhere(text: str, expected: bool) -> None:
    assert texts.hedges(text) is expected


def test_formatting_counts_marks_for_each_hundred_words() -> None:
    assert texts.formatting("plain words - and a dash, 2. not a list, ** no bold") == 0
    assert texts.formatting("# Title\n- one\n* two\n1. three\n2) four") == pytest.approx(100 * 5 / 10)
    assert texts.formatting("so **very** good and __bold__") == pytest.approx(100 * 2 / 5)
    assert texts.formatting("| a | b |\n```\ncode\n```") == pytest.approx(100 * 3 / 8)
    assert texts.formatting("") == 0


def test_an_empty_text_has_neither_letters_nor_digits() -> None:
    assert [texts.is_empty(text) for text in ("", " \n…! ", "7", "是")] == [True, True, False, False]


def test_copied_is_the_share_of_runs_of_five_words_from_the_prompt() -> None:
    prompt = "Say in one word what color the sky is"
    assert texts.copied(prompt, "one word what COLOR the moon") == pytest.approx(1 / 2)  # 2 runs, 1 of them known
    assert texts.copied(prompt, prompt) == 1
    assert texts.copied(prompt, "Blue") == 0


def test_other_script_is_the_share_of_letters_in_scripts_the_prompt_lacks() -> None:
    assert texts.other_script("What is it?", "ab да") == pytest.approx(1 / 2)
    assert texts.other_script("Что это? abc", "ab да") == 0
    assert texts.other_script("12?", "да") == 0  # the prompt has no script
    assert texts.other_script("What?", "42") == 0


def test_variety_is_the_share_of_different_word_pairs() -> None:
    assert texts.variety(["a b c", "a b d"]) == pytest.approx(3 / 4)  # ab bc ab bd
    assert texts.variety(["a b", "a b", "a b", "a b"]) == pytest.approx(1 / 4)
    assert texts.variety(["one", ""]) == 1
