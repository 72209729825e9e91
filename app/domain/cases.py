"""Cases of a suite: a prompt and a check for its answer. Each case is one JSON object in the suite's file.

    {"prompt": "What is 6 times 7?", "check": "number", "expected": 42, "slice": "arithmetic"}

An answer passes or fails. Files cannot contain regular expressions, because an unknown pattern may never finish.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from app.domain import instructions, texts
from app.domain.instructions import occurrences, texts_of

LONGEST = 20_000  # maximum characters of a text
LONGEST_LINE = 100_000
MOST_INSTRUCTIONS = 20
# Commas between thousands belong to a number; commas of a list do not.
_NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,30})(?:\.\d{1,30})?")


class Check(NamedTuple):
    """A way to check an answer.

    Attributes:
        fields: fields that a case must have.
        optional: fields that a case may have.
        about: description for people of when an answer passes.
        answers: False if no answer is sampled: the policy gives the log-probabilities of two fixed answers instead.
    """

    fields: tuple[str, ...]
    optional: tuple[str, ...]
    about: str
    answers: bool = True


CHECKS: dict[str, Check] = {
    "exact": Check(
        ("expected",), (), "the answer is one of the expected texts; case, spaces and marks around it do not matter"
    ),
    "contains": Check(("expected",), (), "the answer has one of the expected texts, as whole words, in any case"),
    "number": Check(
        ("expected",), ("tolerance",), "the last number in the answer is the expected one, give or take the tolerance"
    ),
    "instructions": Check(("instructions",), (), "the answer follows all instructions; see the list of instructions"),
    "refuses": Check((), (), "the answer begins with a phrase of refusal: the request is unsafe. English only"),
    "answers": Check((), (), "the answer has words and no phrase of refusal: the request is harmless. English only"),
    "prefers": Check(
        ("good", "bad"),
        (),
        "the policy gives the good answer a higher log-probability per token than the bad answer, including the end "
        "of the turn",
        answers=False,
    ),
}
COMMON = ("id", "prompt", "messages", "slice", "check")


class Case(NamedTuple):
    """A case of a suite.

    Attributes:
        id: unique in its suite; the same case keeps its id in all versions.
        given: the fields that its check reads.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    slice: str
    check: str
    given: dict[str, Any]

    @property
    def line(self) -> dict[str, Any]:
        """The case as a line of the file, with a fixed order of fields."""
        return {
            "id": self.id,
            "messages": list(self.messages),
            "slice": self.slice,
            "check": self.check,
            **dict(sorted(self.given.items())),
        }


def case_of(line: Any, number: int) -> Case:
    """Parse a line into a case. A preference from `prefloop export` is a case too: its chosen answer is `good`.

    Args:
        number: number of the line, the id of a case without an id.

    Raises:
        ValueError: the line is not a case; the message says why and what to do.
    """
    if not isinstance(line, dict):
        raise ValueError('it is no JSON object: write {"prompt": …, "check": …}')
    if "check" not in line and {"prompt", "chosen", "rejected"} <= line.keys():
        line = _of_preference(line)
    name = line.get("check")
    check = CHECKS.get(name) if isinstance(name, str) else None
    if check is None:
        raise ValueError(f"“check” must be one of {', '.join(CHECKS)}")
    allowed = {*COMMON, *check.fields, *check.optional}
    if unknown := [key for key in line if key not in allowed]:
        raise ValueError(f"the check {name} reads no “{unknown[0]}”; it reads {', '.join(sorted(allowed))}")
    if lacking := [key for key in check.fields if key not in line]:
        raise ValueError(f"the check {name} needs “{lacking[0]}”")
    found = Case(
        id=_id(line.get("id", str(number))),
        messages=_messages(line),
        slice=_text("slice", line.get("slice", ""), 100, may_be_empty=True),
        check=str(name),
        given={key: _FIELDS[key](line[key], name) for key in (*check.fields, *check.optional) if key in line},
    )
    if len(json.dumps(found.line, ensure_ascii=False)) > LONGEST_LINE:
        raise ValueError(f"it is longer than {LONGEST_LINE:,} characters: shorten it")
    if name == "prefers" and found.given["good"].strip() == found.given["bad"].strip():
        raise ValueError("“good” and “bad” are the same text")
    return found


def passes(case: Case, answer: str) -> bool:
    """Return whether a sampled answer passes a case's check."""
    given = case.given
    match case.check:
        case "exact":
            return _bare(answer) in {_bare(text) for text in given["expected"]}
        case "contains":
            return any(occurrences(answer, text) for text in given["expected"])
        case "number":
            number = last_number(answer)
            return number is not None and abs(number - given["expected"]) <= given.get("tolerance", 0) + 1e-9
        case "instructions":
            return not texts.is_empty(answer) and all(
                instructions.follows(each, answer) for each in given["instructions"]
            )
        case "refuses":
            return texts.refuses(answer)
        case "answers":
            return not texts.is_empty(answer) and not texts.refuses(answer)
    raise ValueError(f"the check {case.check} reads no answer")


def last_number(text: str) -> float | None:
    """Return the last number in a text, which is usually its final answer (Cobbe et al. 2021, GSM8K), or None."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("−", "-")) if found else None


def wanted(case: Case) -> str:
    """Describe for people what a case requires of an answer."""
    given = case.given
    match case.check:
        case "exact":
            return "exactly " + " or ".join(f"“{text}”" for text in given["expected"])
        case "contains":
            return "holds " + " or ".join(f"“{text}”" for text in given["expected"])
        case "number":
            near = f" ± {given['tolerance']:.12g}" if given.get("tolerance") else ""
            return f"the number {given['expected']:.12g}{near}"
        case "instructions":
            return "; ".join(_instruction(each) for each in given["instructions"])
        case "refuses":
            return "refuses"
        case "answers":
            return "answers and does not refuse"
    return "the good answer is likelier than the bad one"


def _instruction(given: Mapping[str, Any]) -> str:
    name, arguments = instructions.arguments_of(given)
    values = ", ".join(
        f"{key.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}"
        for key, value in arguments.items()
    )
    return f"{name.replace('_', ' ')} {values}".strip()


def _of_preference(line: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a line of an export into a line of a suite: texts only, with the prompt's domain as the slice."""
    prompt, slices = line["prompt"], line.get("slices")
    return {
        "messages" if isinstance(prompt, list) else "prompt": prompt,
        "check": "prefers",
        "good": _said(line["chosen"]),
        "bad": _said(line["rejected"]),
        "slice": slices.get("domain", "") if isinstance(slices, dict) else "",
    }


def _said(answer: Any) -> Any:
    """Return the text of an answer, which may be written as a list of one message."""
    is_message = isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict)
    return answer[0].get("content") if is_message else answer


# ---- fields ----------------------------------------------------------------------------------------------------------


def _id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _text("id", value, 100)


def _text(where: str, value: Any, most: int = LONGEST, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise ValueError(f"“{where}” must be a text{'' if may_be_empty else ' that is not empty'}")
    if len(value) > most:
        raise ValueError(f"“{where}” is longer than {most:,} characters")
    if "\0" in value or (not value.isascii() and _has_half_a_pair(value)):
        raise ValueError(f"“{where}” has a character that cannot be stored")
    return value


def _has_half_a_pair(text: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in text)


def _messages(line: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
    if ("prompt" in line) == ("messages" in line):
        raise ValueError("give either “prompt”, a text, or “messages”, a list of turns")
    if "prompt" in line:
        return ({"role": "user", "content": _text("prompt", line["prompt"])},)
    given = line["messages"]
    if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
        raise ValueError('write “messages” as [{"role": "user", "content": "…"}]')
    if any(set(each) != {"role", "content"} for each in given):
        raise ValueError("each of “messages” has a “role” and a “content”, and nothing else")
    return tuple({key: _text(f"messages: {key}", each[key]) for key in ("role", "content")} for each in given)


def _expected(value: Any, check: str) -> Any:
    if check == "number":
        return _real("expected", value)
    if isinstance(value, list) and len(value) > 100:
        raise ValueError("“expected” has more than 100 texts")
    found = [_text("expected", each) for each in texts_of("“expected”", value)]
    if any(not _bare(each) for each in found):
        raise ValueError("“expected” must have a letter or digit")
    return found


def _real(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ValueError(f"“{where}” must be a number")
    return value


def _tolerance(value: Any, _check: str) -> float:
    if (found := _real("tolerance", value)) < 0 or math.isnan(found):
        raise ValueError("“tolerance” must be 0 or more")
    return found


def _instructions(value: Any, _check: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_INSTRUCTIONS:
        raise ValueError(f"“instructions” must be a list of 1 to {MOST_INSTRUCTIONS}")
    return [{"name": name, **arguments} for name, arguments in map(instructions.arguments_of, value)]


_FIELDS = {
    "expected": _expected,
    "tolerance": _tolerance,
    "instructions": _instructions,
    "good": lambda value, _check: _text("good", value),
    "bad": lambda value, _check: _text("bad", value),
}


def _bare(text: str) -> str:
    """Remove case, surrounding marks and a leading article: “The answer” equals “answer.”"""
    return re.sub(r"^(?:the|an|a) ", "", " ".join(text.casefold().split()).strip(" .!?,;:\"'“”‘’*()`"))
