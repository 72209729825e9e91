"""Differences between two rubrics, part by part."""

from typing import Any

from app.models import Rubric
from app.rubrics.comparing import Section, compare

EXAMPLE = {"prompt": "2 + 2?", "better": "4", "worse": "5", "reason": "Four is right."}
QUESTION = {"prompt": "2 + 2?", "first": "4", "second": "5", "answer": -1, "feedback": "Four."}


def rubric(**values: Any) -> Rubric:
    begun: dict[str, Any] = {
        "guideline": "Be kind.\n",
        "strengths": 3,
        "allow_tie": True,
        "allow_both_bad": True,
        "allow_cannot_judge": True,
        "rationale_rule": "optional",
        "aspects": [{"name": "style", "question": "Which is better written?"}],
        "flags": [],
        "examples": [],
        "quiz": [],
        "principles": [],
    }
    return Rubric(**begun | values)


def said(sections: list[Section]) -> list[tuple[str, str, str]]:
    """Return (section, title, state) of every change."""
    return [(section.title, change.title, change.state) for section in sections for change in section.changes]


def words(sections: list[Section]) -> list[str]:
    """Return all lines as `part: -text` or `part: +text`."""
    signs = {"removed": "-", "added": "+", "same": " "}
    return [
        f"{part.label}: {signs[line.kind]}{''.join(piece.text for piece in line.pieces)}"
        for section in sections
        for change in section.changes
        for part in change.parts
        for line in part.lines
    ]


def test_nothing_differs() -> None:
    assert compare(rubric(), rubric(guideline="Be kind.")) == []


def test_every_setting_has_its_words() -> None:
    changed = rubric(
        strengths=1, allow_tie=False, allow_both_bad=False, allow_cannot_judge=False, rationale_rule="required"
    )
    sections = compare(rubric(), changed)
    assert said(sections) == [
        ("Answers", "Strengths each way", "changed"),
        ("Answers", "Tie", "changed"),
        ("Answers", "“Both bad”", "changed"),
        ("Answers", "“Cannot judge”", "changed"),
        ("Answers", "Reason", "changed"),
    ]
    assert words(sections) == [
        ": -3", ": +1",
        *[": -allowed", ": +not allowed"] * 3,
        ": -optional", ": +required",
    ]  # fmt: skip


def test_rows_are_known_by_their_name() -> None:
    new = [{"name": "safety", "question": "Which is safer?"}, {"name": "style", "question": "Which is nicer?"}]
    sections = compare(rubric(), rubric(aspects=new))
    assert said(sections) == [("Aspects", "Aspect “safety”", "added"), ("Aspects", "Aspect “style”", "changed")]
    assert words(sections) == [
        "question: +Which is safer?",
        "question: -Which is better written?",
        "question: +Which is nicer?",
    ]
    assert said(compare(rubric(aspects=new), rubric(aspects=new[:1]))) == [("Aspects", "Aspect “style”", "removed")]


def test_another_order_is_a_change() -> None:
    rows = [{"name": name, "question": "Which?"} for name in ("a", "b", "c")]
    sections = compare(rubric(aspects=rows), rubric(aspects=[rows[1], rows[0], rows[2]]))
    assert said(sections) == [("Aspects", "Order", "changed")]
    added = [{"name": "d", "question": "Which?"}, *rows]
    assert said(compare(rubric(aspects=rows), rubric(aspects=added))) == [("Aspects", "Aspect “d”", "added")]


def test_examples_of_the_same_prompt_are_told_apart() -> None:
    other = EXAMPLE | {"better": "Four", "reason": "Words are fine."}
    old, new = rubric(examples=[EXAMPLE, other]), rubric(examples=[EXAMPLE, other | {"reason": "Words are fine too."}])
    sections = compare(old, new)
    assert said(sections) == [("Worked examples", "Example “2 + 2?”", "changed")]
    assert words(sections) == ["reason: -Words are fine.", "reason: +Words are fine too."]


def test_a_question_whose_right_answer_changed() -> None:
    sections = compare(rubric(quiz=[QUESTION]), rubric(quiz=[QUESTION | {"answer": 1}]))
    assert words(sections) == ["right answer: -First is better", "right answer: +Second is better"]


def test_a_long_prompt_is_shown_in_full_below_its_title() -> None:
    long = "word " * 40
    sections = compare(rubric(), rubric(quiz=[QUESTION | {"prompt": long}]))
    [[_section, title, _state]] = said(sections)
    assert title.endswith("…”")
    assert words(sections)[0] == f"prompt: +{long}"
