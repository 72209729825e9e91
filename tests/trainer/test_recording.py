import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_session_factory
from app.errors import Unavailable
from app.models import Metric, Run
from app.rounds import service
from tests import factories
from trainer.reporting import RunCancelled
from trainer.service import recording
from trainer.service.recording import PATIENCE_SECONDS, RunLost, RunRecorder


@pytest.fixture
def run(session: Session) -> Run:
    return factories.run(session, factories.project(session), "ppo")


def begin(run: Run, session: Session, engine: Engine, folder: Path) -> RunRecorder:
    """Start another attempt of the run."""
    service.run_started(session, run)
    session.commit()
    assert run.started_at is not None
    return RunRecorder(make_session_factory(engine), run.id, run.started_at, threading.Event(), ArtifactStore(folder))


def recorded(session: Session) -> list[tuple[int, str, str, float]]:
    found = session.execute(select(Metric.step, Metric.name, Metric.slice, Metric.value).order_by(Metric.step))
    return [tuple(row) for row in found]


def test_pages_of_samples_become_an_artifact_of_the_run(
    session: Session, engine: Engine, tmp_path: Path, run: Run
) -> None:
    def pages() -> list[tuple[int, str]]:
        lines = (tmp_path / f"runs/run-{run.id}/samples.jsonl").read_text().splitlines()
        return [(page["step"], page["response"]) for page in map(json.loads, lines)]

    first = begin(run, session, engine, tmp_path)
    for step in (0, 2, 4):
        first.samples(step, [{"response": "ä"}, {"response": "b"}])
    assert pages() == [(step, response) for step in (0, 2, 4) for response in "äb"]

    # Another worker resumes from a checkpoint before step 4. Then the first worker wakes up and must not interfere.
    second = begin(run, session, engine, tmp_path)
    second.samples(4, [{"response": "c"}])
    with pytest.raises(RunLost):
        first.samples(2, [{"response": "late"}])
    assert pages() == [(0, "ä"), (0, "b"), (2, "ä"), (2, "b"), (4, "c")]


def test_a_cancelled_run_ends_at_its_next_heartbeat_with_what_it_has_said(
    session: Session, engine: Engine, tmp_path: Path, run: Run
) -> None:
    recorder = begin(run, session, engine, tmp_path)
    recorder.metrics(1, {"loss": 1.0})
    recorder.flush()
    recorder.metrics(1, {"loss": 2.0})  # a resumed run reports a step again
    recorder.metrics(1, {"loss": 3.0}, "domain=facts")
    run.cancel_requested = True
    session.commit()
    with pytest.raises(RunCancelled):
        recorder.progress(3, 7, "training")
    assert sorted(recorded(session)) == [(1, "loss", "", 2.0), (1, "loss", "domain=facts", 3.0)]
    session.refresh(run)
    assert (run.progress_done, run.progress_total, run.progress_message) == (3, 7, "training")
    service.run_cancelled(session, run)
    session.commit()
    with pytest.raises(RunLost):  # the run has ended, so nothing more is written
        recorder.flush()


def test_each_outage_of_the_database_has_its_own_patience_and_costs_no_metric(
    session: Session, engine: Engine, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = begin(run, session, engine, tmp_path)
    begin_session, now = recorder._sessions.begin, 1000.0
    away = False

    def connect() -> Any:
        if away:
            raise OperationalError("SELECT", {}, Exception("The server closed the connection."))
        return begin_session()

    monkeypatch.setattr(recorder, "_sessions", SimpleNamespace(begin=connect))
    monkeypatch.setattr(recording, "time", SimpleNamespace(monotonic=lambda: now))
    for step, gone in enumerate((False, True, True, False, True, True)):
        away = gone
        recorder.metrics(step, {"loss": 0.5})
        recorder.progress(step, 9)
        now += PATIENCE_SECONDS - 10
    assert recorded(session) == [(step, "loss", "", 0.5) for step in range(4)]
    with pytest.raises(Unavailable, match="did not come back"):
        recorder.progress(6, 9)


def test_the_run_says_how_fast_it_goes_how_long_it_takes_and_what_it_logged(
    session: Session, engine: Engine, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(recording.time, "monotonic", lambda: now)
    recorder = begin(run, session, engine, tmp_path)
    recorder.progress(0, 20, "training the policy")
    for step in range(1, 5):
        now += 30
        recorder.worked(600)
        recorder.metrics(step, {"loss": 0.5})
        recorder.progress(step, 20, "training the policy")
    session.refresh(run)
    assert (run.seconds_left, run.tokens_per_second) == (16 * 30, 20.0)
    assert [line[20:] for line in run.log.splitlines()] == [
        "training the policy: 0 of 20",
        *(f"step {step}: loss 0.5" for step in range(1, 5)),
    ]
