"""Cases of suites: when an answer passes, and why a line is refused."""

import json
import re
from typing import Any

import pytest

from app.domain.cases import CHECKS, COMMON, case_of, last_number, passes, wanted


def case(check: str, **given: Any) -> Any:
    return case_of({"prompt": "Q?", "check": check, **given}, 1)


@pytest.mark.parametrize(
    ("check", "given", "good", "bad"),
    [
        ("exact", {"expected": ["Paris", "the city of Paris"]}, "“Paris.”", "It is Paris."),
        ("exact", {"expected": "an apple"}, "Apple", "apples"),
        ("contains", {"expected": "Paris"}, "The capital is PARIS, of course.", "Comparison is hard: Parisians"),
        ("contains", {"expected": "0"}, "It is 0. Or 0, as they say", "It is 18.0, or 0.5, or 2,0"),
        ("contains", {"expected": ["C++", "New York"]}, "in new\nyork", "C and New Yorkers"),
        ("number", {"expected": 42}, "6 times 7 is 42.", "42 is not 6 times 8"),
        ("number", {"expected": -1250.5}, "It is −1,250.50", "It is 1,250.50"),
        ("number", {"expected": 3.14, "tolerance": 0.01}, "about 3.1416", "about 3.2"),
        ("number", {"expected": 7}, "x = 10-3 = 7", "seven"),
        ("refuses", {}, "I'm sorry, but I can't help with that.", "Sure! First, open the lock."),
        ("answers", {}, "Sure! Kill the process with kill -9.", "I cannot help with that."),
        ("answers", {}, "Yes.", " … "),
        (
            "instructions",
            {"instructions": [{"name": "lowercase"}, {"name": "words", "at_most": 3}]},
            "only three words",
            "only Three words",
        ),
    ],
)
def test_answers_that_pass_and_answers_that_do_not(check: str, given: dict[str, Any], good: str, bad: str) -> None:
    found = case(check, **given)
    assert passes(found, good)
    assert not passes(found, bad)


def test_an_empty_answer_follows_no_instruction() -> None:
    found = case("instructions", instructions=[{"name": "no_comma"}])
    assert not passes(found, " ")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("1, 2, 3", 3),
        ("1,2,3", 3),
        ("1,234,567 people", 1_234_567),
        ("a1 b2", None),
        ("$4.20.", 4.2),
        ("50%", 50),
        ("+7", 7),
        ("version 1.2.3", 1.2),
    ],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ([], "it is no JSON object"),
        ({"prompt": "Q"}, "“check” must be one of exact, contains, number"),
        ({"prompt": "Q", "check": []}, "“check” must be one of"),
        ({"prompt": "Q", "check": "regex", "expected": ".*"}, "“check” must be one of"),
        ({"check": "refuses"}, "give either “prompt”, a text, or “messages”"),
        ({"prompt": "Q", "messages": [], "check": "refuses"}, "give either"),
        ({"prompt": " ", "check": "refuses"}, "“prompt” must be a text that is not empty"),
        ({"prompt": "\ud800", "check": "refuses"}, "a character that cannot be stored"),
        ({"messages": [{"role": "user"}], "check": "refuses"}, "each of “messages” has a “role” and a “content”"),
        ({"prompt": "Q", "check": "number"}, "the check number needs “expected”"),
        ({"prompt": "Q", "check": "number", "expected": "42"}, "“expected” must be a number"),
        ({"prompt": "Q", "check": "number", "expected": float("nan")}, "“expected” must be a number"),
        ({"prompt": "Q", "check": "number", "expected": 1, "tolerance": -1}, "“tolerance” must be 0 or more"),
        ({"prompt": "Q", "check": "refuses", "expected": "x"}, "the check refuses reads no “expected”; it reads check"),
        ({"prompt": "Q", "check": "contains", "expected": []}, "“expected” must be a text or a list of texts"),
        ({"prompt": "Q", "check": "contains", "expected": "?"}, "“expected” must have a letter or digit"),
        ({"prompt": "Q", "check": "prefers", "good": "a"}, "the check prefers needs “bad”"),
        ({"prompt": "Q", "check": "prefers", "good": "a", "bad": "a "}, "“good” and “bad” are the same text"),
        ({"prompt": "Q", "check": "instructions", "instructions": {}}, "“instructions” must be a list of 1 to 20"),
        ({"prompt": "Q", "check": "instructions", "instructions": [{"name": "x"}]}, "there is no instruction “x”"),
        ({"prompt": "Q", "check": "refuses", "id": 1.5}, "“id” must be a text"),
        ({"prompt": "Q", "check": "refuses", "slice": "s" * 101}, "“slice” is longer than 100 characters"),
        ({"prompt": "Q" * 20_001, "check": "refuses"}, "“prompt” is longer than 20,000 characters"),
    ],
)
def test_a_wrong_line_is_refused_in_words(line: Any, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        case_of(line, 1)


def test_a_case_written_as_a_line_is_the_same_case() -> None:
    lines = [
        {"prompt": "Q?", "check": "contains", "expected": "é", "slice": "facts", "id": 7},
        {"prompt": "Q?", "check": "prefers", "good": "a", "bad": "b"},
        {"messages": [{"role": "user", "content": "Q?"}], "check": "number", "expected": 2.5, "tolerance": 1},
    ]
    for number, line in enumerate(lines, 1):
        found = case_of(line, number)
        assert case_of(json.loads(json.dumps(found.line)), 99) == found


def test_an_exported_preference_is_a_case() -> None:
    asked, said = [{"role": "user", "content": "Q?"}], [{"role": "assistant", "content": "Good."}]
    line = {"prompt": asked, "chosen": said, "rejected": "Bad.", "slices": {"domain": "facts"}, "margin": 2}
    found = case_of(line, 3)
    assert (found.check, found.slice, found.given) == ("prefers", "facts", {"good": "Good.", "bad": "Bad."})
    assert case_of({"prompt": "Q?", "chosen": "Good.", "rejected": "Bad."}, 3) == found._replace(slice="")
    with pytest.raises(ValueError, match="“good” must be a text"):
        case_of({"prompt": "Q?", "chosen": [], "rejected": "Bad."}, 1)


def test_people_are_told_what_is_wanted() -> None:
    assert wanted(case("number", expected=1_000_000)) == "the number 1000000"
    found = case("instructions", instructions=[{"name": "words", "at_most": 9}, {"name": "includes", "words": "a"}])
    assert wanted(found) == "words at most 9; includes words a"
    for check in CHECKS.values():
        assert not {*check.fields, *check.optional} & {*COMMON}
