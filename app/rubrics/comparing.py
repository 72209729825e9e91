"""The differences between two rubrics, with a section for each part that changed."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from app.domain import textdiff
from app.models import Rubric
from app.rubrics.forms import ANSWERS, ROW_KINDS, Row, RubricForm

SECTIONS = {
    "aspects": "Aspects",
    "flags": "Content flags",
    "examples": "Worked examples",
    "quiz": "Quiz",
    "principles": "Constitution",
}


class Part(NamedTuple):
    """A text that differs; all of it if something was added or removed. `label` is '' if it needs none."""

    label: str
    lines: list[textdiff.Line]


class Change(NamedTuple):
    """One thing that was added, removed or changed; title and state are '' if `parts` say enough."""

    title: str
    state: str
    parts: list[Part]


class Section(NamedTuple):
    title: str
    changes: list[Change]


def compare(old: Rubric | RubricForm, new: Rubric | RubricForm) -> list[Section]:
    """Return the parts that differ; empty if the rubrics are the same."""
    was, now = _form(old), _form(new)
    sections = [
        Section("Guideline", _guideline(was.guideline, now.guideline)),
        Section("Answers", _settings(was, now)),
        *(Section(title, _rows(kind, was.rows[kind], now.rows[kind])) for kind, title in SECTIONS.items()),
    ]
    return [section for section in sections if section.changes]


def _form(rubric: Rubric | RubricForm) -> RubricForm:
    return rubric if isinstance(rubric, RubricForm) else RubricForm.of(rubric)


def _guideline(old: str, new: str) -> list[Change]:
    lines = textdiff.diff(old.strip(), new.strip())
    return [Change("", "", [Part("", lines)])] if lines else []


def settings(rubric: Rubric | RubricForm) -> dict[str, str]:
    """Return how labelers answer under a rubric, by the name of each setting."""
    allowed = {True: "allowed", False: "not allowed"}
    return {
        "Strengths each way": str(rubric.strengths),
        "Tie": allowed[rubric.allow_tie],
        "“Both bad”": allowed[rubric.allow_both_bad],
        "“Cannot judge”": allowed[rubric.allow_cannot_judge],
        "Reason": rubric.rationale_rule,
    }


def _settings(was: RubricForm, now: RubricForm) -> list[Change]:
    before, after = settings(was), settings(now)
    return [
        Change(name, "changed", [Part("", textdiff.diff(before[name], after[name]))])
        for name in before
        if before[name] != after[name]
    ]


def _rows(kind: str, old: list[Row], new: list[Row]) -> list[Change]:
    """Return changes of rows. Rows with the same first field (name or prompt) are compared; others were added or
    removed."""
    before, after = _keyed(kind, old), _keyed(kind, new)
    changes = [_change(kind, key, before.get(key), row) for key, row in after.items() if before.get(key) != row]
    changes += [_change(kind, key, row, None) for key, row in before.items() if key not in after]
    kept_before, kept_after = [key for key in before if key in after], [key for key in after if key in before]
    if kept_before != kept_after:
        order = [Part("", textdiff.diff(_listed(kept_before), _listed(kept_after)))]
        changes.append(Change("Order", "changed", order))
    return changes


def _keyed(kind: str, rows: list[Row]) -> dict[tuple[str, int], Row]:
    """Return rows by (first field, number); the number distinguishes rows with the same first field."""
    first_field, *_ = ROW_KINDS[kind].fields
    seen: dict[str, int] = defaultdict(int)
    keyed = {}
    for row in rows:
        key = row[first_field].strip()
        seen[key] += 1
        keyed[key, seen[key]] = row
    return keyed


def _listed(keys: Iterable[tuple[str, int]]) -> str:
    return "\n".join(_short(text) for text, _number in keys)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def _change(kind: str, key: tuple[str, int], old: Row | None, new: Row | None) -> Change:
    state = "added" if old is None else "removed" if new is None else "changed"
    text = key[0]
    # The title shows the first field already, unless it is too long.
    fields = list(ROW_KINDS[kind].fields.items())[_short(text) == text :]
    parts = [Part(label, textdiff.diff(_said(old, field), _said(new, field))) for field, label in fields]
    return Change(f"{ROW_KINDS[kind].one} “{_short(text)}”", state, [part for part in parts if part.lines])


def _said(row: Row | None, field: str) -> str:
    text = row[field] if row else ""
    return ANSWERS.get(text, text) if field == "answer" else text
