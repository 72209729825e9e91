"""Pairs to train on, read from a file."""

import json
from pathlib import Path

import pytest

from benchmarks import data


def test_read_keeps_the_pairs_with_a_winner(tmp_path: Path) -> None:
    lines = [
        {"prompt": "Which?", "chosen": "this", "rejected": "that"},
        {"prompt": "Neither?", "chosen": "same", "rejected": "same"},
        {"prompt": "Bad line"},
        {"prompt": "And now?", "chosen": "one", "rejected": "two"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    found = [(row.messages[-1]["content"], row.response_a, row.response_b) for row in data.read(file)]
    assert found == [("Which?", "this", "that"), ("And now?", "one", "two")]


def test_read_refuses_what_cannot_be_imported(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text('{"x": 1}')
    with pytest.raises(SystemExit, match="not a format"):
        data.read(file)
