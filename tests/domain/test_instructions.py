"""Verifiable instructions: published instructions, with answers that follow them and answers that narrowly fail."""

import re
from typing import Any

import pytest

from app.domain.instructions import INSTRUCTIONS, arguments_of, follows, sentences, words_of

FOUR_ITEMS = "He taught well:\n* He wrote books.\n* He was kind.\n- He built things.\n1. He cared."
# By key and id of a published prompt: its instruction in our words, an answer that follows it, and an answer
# that does not. See tests/fixtures/NOTICE.
IFEVAL: list[tuple[str, dict[str, Any], str, str]] = [
    ("1019 english_lowercase", {"name": "lowercase"}, "what do the boys hold?", "What do the boys hold?"),
    ("1999 english_capital", {"name": "uppercase"}, "THE WAR ENDED IN 1945.", "THE WAR ENDED IN 1945, they say."),
    ("1092 number_words < 300", {"name": "words", "at_most": 299}, "a " * 299, "a " * 300),
    ("2266 number_sentences < 7", {"name": "sentences", "at_most": 6}, "So. " * 6, "So. " * 7),
    ("1236 number_paragraphs 3", {"name": "paragraphs", "at_least": 3, "at_most": 3}, "a\n***\nb\n***\nc", "a\n\nb"),
    ("2457 number_bullet_lists 4", {"name": "bullets", "at_least": 4, "at_most": 4}, FOUR_ITEMS, FOUR_ITEMS[:-12]),
    ("1644 highlighted 5", {"name": "highlights", "at_least": 5}, "*a* *b* **c** *d e* *f*", "*a* *b* *c* *d* e*"),
    ("1372 placeholders 7", {"name": "placeholders", "at_least": 7}, "[name] " * 7, "[name] " * 6 + "[]"),
    ("2820 capital words 15", {"name": "capital_words", "at_least": 15}, "STITCH " * 15, "STITCH " * 14 + "Trip I"),
    ("2142 keyword twice", {"name": "occurs", "word": "predatory", "at_least": 2}, "Predatory, predatory", "predatory"),
    ("2265 letter q 4", {"name": "letter", "letter": "q", "at_least": 4}, "Quick, quiet Q&A, q", "Quick quiet Q"),
    (
        "1131 sections 4",
        {"name": "sections", "marker": "Section", "at_least": 4, "at_most": 4},
        "".join(f"Section {n}\nClowning\n" for n in range(4)),
        "Section 1\nThis section 2 of the work\nSection 3",
    ),
    ("3439 keywords", {"name": "includes", "words": ["bill", "jurgen"]}, "Bill saw Jurgen.", "Billy saw Jurgen."),
    ("1147 forbidden", {"name": "excludes", "words": ["field", "thanks"]}, "A fielder", "Thanks!"),
    ("1187 no_comma", {"name": "no_comma"}, "How are you today? Off to the coast.", "How are you, sir?"),
    ("1776 quotation", {"name": "quoted"}, '"It is 19."', '"It is 19." So there.'),
    ("1094 json_format", {"name": "json"}, '```json\n{"moms": ["Marge"]}\n```', 'Here: {"moms": ["Marge"]}'),
    ("2229 title", {"name": "title"}, "<<Dry at last>>\nMoms, listen.", "<< >> Dry at last"),
    (
        "2355 repeat_prompt",
        {"name": "starts_with", "phrase": "Wherefore doth people consider it outdated?"},
        "Wherefore doth people  consider it outdated? Because it be old.",
        "Because it be old. Wherefore doth people consider it outdated?",
    ),
    ("1893 end_checker", {"name": "ends_with", "phrase": "Peace!"}, "We ride.\n\nPeace!", "Peace! Out."),
    ("1800 postscript", {"name": "postscript", "marker": "P.S."}, "Tilt.\nP.S. Wear a hat.", "Tilt, PS a hat."),
    (
        "3750 constrained_response",
        {"name": "one_of", "options": ["My answer is yes.", "My answer is no."]},
        "My answer is no",
        "My answer is no, and so is yours.",
    ),
]


@pytest.mark.parametrize(("given", "good", "bad"), [each[1:] for each in IFEVAL], ids=[each[0] for each in IFEVAL])
def test_published_instructions(given: dict[str, Any], good: str, bad: str) -> None:
    assert follows(given, good)
    assert not follows(given, bad)


def test_every_instruction_is_tried() -> None:
    assert {given["name"] for _, given, _, _ in IFEVAL} == set(INSTRUCTIONS)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("It rains. It pours!", 2),
        ("It rains, e.g. today. Dr. Who knows 3.5 reasons", 2),
        ("“Really?” she said. He left...", 3),
        ("1. One thing\n2. Another thing.", 2),
        ("", 0),
        ("?!", 1),
    ],
)
def test_sentences(text: str, n: int) -> None:
    assert sentences(text) == n


def test_words_are_what_a_reader_counts() -> None:
    assert words_of("Don’t pay $1,000.50 for well-known—and e-mailed—things … (ok)") == (
        ["Don’t", "pay", "1,000.50", "for", "well-known", "and", "e-mailed", "things", "ok"]
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("words", 'write each instruction as {"name"'),
        ({"name": "haiku"}, "there is no instruction “haiku”; there are words, sentences"),
        ({"name": "words"}, "the instruction words needs “at_least”, “at_most” or both"),
        ({"name": "words", "at_most": "9"}, "words: at_most must be a whole number from 0 to 100,000"),
        ({"name": "words", "at_most": True}, "words: at_most must be a whole number"),
        ({"name": "words", "at_least": 9, "at_most": 8}, "at_least is more than at_most"),
        ({"name": "json", "of": 1}, "the instruction json takes no “of”, only nothing else"),
        ({"name": "letter", "letter": "ab", "at_least": 1}, "letter: letter must be one letter"),
        ({"name": "includes", "words": []}, "includes: words must be a text or a list of texts"),
        ({"name": "ends_with"}, "the instruction ends_with needs “phrase”"),
    ],
)
def test_a_wrong_instruction_is_named(given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        arguments_of(given)


HARD = (
    "a" * 40_000,
    "." * 40_000 + "a",
    "<<" * 20_000,
    "*" * 40_000,
    "[" * 40_000,
    '"' * 40_000,
    " \n" * 20_000,
    "1," * 20_000,
)


@pytest.mark.parametrize("text", HARD, ids=lambda text: repr(text[:2]))
def test_no_answer_keeps_a_checker_busy(text: str) -> None:
    """A pattern with backtracking would take minutes for these answers."""
    for _, given, _, _ in IFEVAL:
        follows(given, text)
    assert sentences(text) >= 0


def test_deep_json_is_not_taken_for_a_fault() -> None:
    assert not follows({"name": "json"}, "[" * 100_000)
