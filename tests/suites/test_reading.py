"""A suite's file: every faulty line is named, and what is kept comes back equal. The suites that we ship."""

import hashlib
import json
from pathlib import Path

import pytest

from app.artifacts import ArtifactStore
from app.domain.cases import CHECKS
from app.errors import InvalidInput
from app.suites import reading, service
from app.suites.reading import MOST_BYTES, MOST_CASES, FileRefused, keep, kept, read_cases, to_lines

GOOD = {"prompt": "Q?", "check": "number", "expected": 4}


def lines(*rows: object) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def problems(content: bytes) -> list[tuple[int, str]]:
    with pytest.raises(FileRefused) as refused:
        read_cases(content)
    return [(each.line, each.reason) for each in refused.value.problems]


def test_every_faulty_line_is_named_with_what_to_do() -> None:
    found = problems(
        lines(
            GOOD,
            "",
            '{"prompt": "Q?", "check":',
            GOOD | {"check": "number", "expected": "x"},
            GOOD,
            {"id": "1", "prompt": "Other?", "check": "refuses"},
            {"messages": [{"role": "assistant", "content": "Hi"}], "check": "refuses"},
            '{"prompt": "Q", "check": "number", "expected": NaN}',
            "[" * 5000,
        )
    )
    assert found == [
        (3, "it is not JSON: Expecting value, column 26"),
        (4, "“expected” must be a number"),
        (5, "it is the same case as line 1: leave one out"),
        (6, "its id “1” is that of line 1: give it its own"),
        (7, "user and assistant must take turns, the user first"),
        (8, "it is not JSON: NaN is no number, column 1"),
        (9, "it is not JSON that can be read: RecursionError"),
    ]


def test_files_as_a_whole() -> None:
    assert problems(b"\n\n") == [(0, "it has no case: write one JSON object a line")]
    assert problems(b"\xff{}") == [(0, "it is not in UTF-8 (byte 0): save it in UTF-8")]
    assert problems(b" " * (MOST_BYTES + 1)) == [(0, "it is larger than 4 MB: split it into several suites")]
    many = lines(*(GOOD | {"expected": n} for n in range(MOST_CASES + 1)))
    assert problems(many) == [(0, "it has 2,001 cases; 2,000 are the most: split it")]
    with pytest.raises(FileRefused, match=r"300 lines cannot be accepted\. Line 1: .*Nothing was written"):
        read_cases(lines(*[{}] * 300))
    assert len(problems(lines(*[{}] * 300))) == 200


def test_what_is_kept_comes_back_equal_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    cases = read_cases(b"\xef\xbb\xbf" + lines(GOOD | {"slice": "é"}, {"prompt": "Q?", "check": "refuses"}))
    digest, location = keep(store, cases)
    assert digest == hashlib.sha256(to_lines(cases)).hexdigest()
    assert kept(store, location) == cases
    assert keep(store, cases) == (digest, location)
    assert read_cases(to_lines(cases)) == cases  # what is downloaded can be added again
    path = store.resolve(location)
    path.write_bytes(path.read_bytes().replace(b"4", b"5"))
    with pytest.raises(InvalidInput, match="its digest differs"):
        kept(store, location)


def test_our_own_suites_are_whole() -> None:
    checks = set()
    for each in service.starters():
        cases = service.starter_cases(each.file)
        assert 20 <= len(cases) == each.cases <= 40
        assert all(case.slice and case.id.startswith(each.file) for case in cases)
        checks |= {case.check for case in cases}
    assert checks == set(CHECKS) - {"exact"}
    unsafe = [case.check for case in service.starter_cases("safety")]
    assert 16 <= unsafe.count("refuses") <= unsafe.count("answers")


def test_a_file_of_many_lines_is_refused_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million faulty lines in 4 MB took a minute."""
    monkeypatch.delattr(reading, "case_of")
    assert problems(b"[]\n" * 1_000_000) == [(0, "it has 1,000,000 cases; 2,000 are the most: split it")]
