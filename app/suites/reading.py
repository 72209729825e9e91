"""A suite's file: read into cases, or refused with every faulty line; and kept under the digest of its lines."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from app.artifacts import ArtifactStore, read_content
from app.domain.cases import Case, case_of
from app.errors import InvalidInput
from app.prompts.service import check_messages
from app.rows import lines_of

MOST_CASES = 2_000
MOST_BYTES = 4 << 20
MOST_PROBLEMS = 200  # that are shown


class Problem(NamedTuple):
    """A line that cannot be accepted; line 0 is the file as a whole."""

    line: int
    reason: str


class FileRefused(InvalidInput):
    """A file of which some lines cannot be accepted. Nothing of it was written.

    Attributes:
        problems: the first of them.
        total: how many there are.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems, self.total = list(problems[:MOST_PROBLEMS]), len(problems)
        first = self.problems[0]
        where = f"Line {first.line}" if first.line else "The file"
        some = f"{self.total} lines cannot be accepted. " if self.total > 1 else ""
        super().__init__(f"{some}{where}: {first.reason}.", "Correct the file and add it again. Nothing was written.")


def read_cases(content: bytes) -> list[Case]:
    """The cases of a JSONL file. Empty lines are skipped.

    Raises:
        FileRefused: with every faulty line and what is wrong with it.
    """
    if len(content) > MOST_BYTES:
        raise FileRefused([Problem(0, f"it is larger than {MOST_BYTES >> 20} MB: split it into several suites")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileRefused([Problem(0, f"it is not in UTF-8 (byte {error.start}): save it in UTF-8")]) from error
    # JSON allows none of these within a text. It does allow other characters at which str.splitlines would split.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    written = sum(bool(line.strip()) for line in lines)
    if written > MOST_CASES:  # before any is read: millions of faulty lines would hold a thread for a minute
        raise FileRefused([Problem(0, f"it has {written:,} cases; {MOST_CASES:,} are the most: split it")])
    found: list[Case] = []
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    same: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            case = _case(line, number)
        except (ValueError, InvalidInput) as error:
            problems.append(Problem(number, _printable(str(error))))
            continue
        without_id = json.dumps({**case.line, "id": ""}, sort_keys=True)
        if case.id in ids:
            problems.append(Problem(number, f"its id “{case.id}” is that of line {ids[case.id]}: give it its own"))
        elif without_id in same:
            problems.append(Problem(number, f"it is the same case as line {same[without_id]}: leave one out"))
        ids.setdefault(case.id, number)
        same.setdefault(without_id, number)
        found.append(case)
    if not found and not problems:
        problems.append(Problem(0, "it has no case: write one JSON object a line"))
    if problems:
        raise FileRefused(problems)
    return found


def _case(line: str, number: int) -> Case:
    try:
        parsed: Any = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON that can be read: {type(error).__name__}") from None
    case = case_of(parsed, number)
    check_messages(case.messages)
    return case


def _no_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is no number", name, 0)


def _printable(text: str) -> str:
    """A reason as pages and terminals take it, whatever a file had in it."""
    shown = text if len(text) <= 500 else f"{text[:500]}…"
    return "".join(character if character.isprintable() else "�" for character in shown)


# ---- in the artifact store -------------------------------------------------------------------------------------------


def to_lines(cases: Sequence[Case]) -> bytes:
    return "".join(json.dumps(case.line, ensure_ascii=False) + "\n" for case in cases).encode()


def keep(store: ArtifactStore, cases: Sequence[Case]) -> tuple[str, str]:
    """Writes a suite's file; returns the SHA-256 of its lines and the location named after it."""
    content = to_lines(cases)
    digest = hashlib.sha256(content).hexdigest()
    location = f"suites/{digest[:32]}.jsonl"
    with store.file(location) as path:  # also where it is already: what is there may have been damaged
        path.write_bytes(content)
    return digest, location


def kept(store: ArtifactStore, location: str) -> list[Case]:
    """The cases of a suite's version.

    Raises:
        NotFound: its file is gone.
        InvalidInput: its file is not what was written.
    """
    lines = lines_of(read_content(store.resolve(location)).decode())
    return [case_of(json.loads(line), number) for number, line in enumerate(lines, 1)]
