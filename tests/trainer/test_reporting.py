import json
from pathlib import Path

import pytest

from trainer.reporting import ConsoleReporter, Metric


def test_metrics_are_kept_and_written_with_their_slice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reporter = ConsoleReporter(stream=None, path=path)
    reporter.metrics(1, {"loss": 0.5})
    reporter.metrics(2, {"loss": 0.25}, "domain=safety")
    assert reporter.recorded == [Metric(1, "loss", "", 0.5), Metric(2, "loss", "domain=safety", 0.25)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "slice": "", "loss": 0.5},
        {"step": 2, "slice": "domain=safety", "loss": 0.25},
    ]
    assert reporter.last("loss", "domain=safety") == 0.25
    with pytest.raises(KeyError, match="accuracy"):
        reporter.last("accuracy")


def test_a_page_of_samples_stands_there_once_whatever_was_written_before(tmp_path: Path) -> None:
    reporter = ConsoleReporter(stream=None, path=tmp_path / "metrics.jsonl")
    for step in (0, 2, 4, 2):  # the run died after step 4 and resumed from a checkpoint before step 2
        reporter.samples(step, [{"response": f"{step} a"}, {"response": "b"}])
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "response": response} for step in (0, 2) for response in (f"{step} a", "b")]


def test_a_kill_in_the_middle_of_a_write_costs_no_line_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "slice": "", "loss": 0.5}\n{"step": 2, "sli')
    again = ConsoleReporter(stream=None, path=path)
    again.metrics(2, {"loss": 0.25})
    assert [line for line in path.read_text().splitlines() if line.endswith("}")] == [
        '{"step": 1, "slice": "", "loss": 0.5}',
        '{"step": 2, "slice": "", "loss": 0.25}',
    ]

    class Killed(Exception):
        pass

    def half(file: Path, text: str) -> None:
        file.open("w").write(text[: len(text) // 2])
        raise Killed

    again.samples(2, [{"response": "a"}])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        with pytest.raises(Killed):
            again.samples(4, [{"response": "b"}])
    ConsoleReporter(stream=None, path=path).samples(4, [{"response": "c"}])
    pages = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert pages == [{"step": 2, "response": "a"}, {"step": 4, "response": "c"}]
