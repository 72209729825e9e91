"""docs/suites.md says all that a file may hold, and its examples and figures hold."""

import json
import re
from pathlib import Path

import pytest

from app.domain.cases import CHECKS, COMMON
from app.domain.instructions import INSTRUCTIONS
from app.domain.suites import paired_difference
from app.suites.reading import read_cases

DOCS = (Path(__file__).parents[2] / "docs/suites.md").read_text()


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    lines = DOCS[DOCS.index(f"| {first}") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_check_and_every_field_is_there() -> None:
    said = {name.strip("`"): needs for name, needs, _ in rows("check |")}
    assert set(said) == set(CHECKS)
    for name, check in CHECKS.items():
        assert set(re.findall(r"`(\w+)`", said[name])) == {*check.fields, *check.optional}
    fields = {name for row in rows("field |") for name in re.findall(r"`(\w+)`", row[0])}
    assert fields == {*COMMON}


def test_every_instruction_is_there_with_its_arguments() -> None:
    said = {
        name: set(re.findall(r"`(\w+)`", row[1]))
        for row in rows("instruction |")
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert said == {name: set(each.arguments) for name, each in INSTRUCTIONS.items()}


def test_the_examples_are_cases() -> None:
    lines = [line for line in DOCS.splitlines() if line.startswith('{"prompt"')]
    assert len(read_cases("\n".join(lines).encode())) == len(lines) == 3
    template = (Path(__file__).parents[2] / "templates/suites/new.html").read_text()
    shown = re.findall(r'^(?:<pre tabindex="0"><code>)?({"prompt".*?})(?:</code></pre>)?$', template, re.MULTILINE)
    assert len(read_cases("\n".join(shown).encode())) == len(shown) == 5
    assert {json.loads(line)["check"] for line in shown} <= set(CHECKS)


@pytest.mark.parametrize("row", rows("cases |"))
def test_how_far_intervals_reach(row: list[str]) -> None:
    n, *reaches = (float(re.sub(r"[^\d.]", "", cell)) for cell in row)
    for changed, reach in zip((0, int(n) // 10), reaches, strict=True):
        found = paired_difference(int(n), changed, changed)
        assert found is not None
        assert 100 * found.high == pytest.approx(reach, abs=0.051)
