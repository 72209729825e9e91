import json
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_session_factory
from app.rounds import service
from tests import factories
from trainer.recording import RunLost, RunRecorder


def test_pages_of_samples_become_an_artifact_of_the_run(session: Session, engine: Engine, tmp_path: Path) -> None:
    run = factories.run(session, factories.project(session), "ppo")

    def begin() -> RunRecorder:
        service.run_started(session, run)
        session.commit()
        assert run.started_at is not None
        return RunRecorder(
            make_session_factory(engine), run.id, run.started_at, threading.Event(), ArtifactStore(tmp_path)
        )

    def pages() -> list[tuple[int, str]]:
        lines = (tmp_path / f"runs/run-{run.id}/samples.jsonl").read_text().splitlines()
        return [(page["step"], page["response"]) for page in map(json.loads, lines)]

    first = begin()
    for step in (0, 2, 4):
        first.samples(step, [{"response": "ä"}, {"response": "b"}])
    assert pages() == [(step, response) for step in (0, 2, 4) for response in "äb"]

    # Another worker goes on from a checkpoint before step 4; the first one wakes up again and must not interfere.
    second = begin()
    second.samples(4, [{"response": "c"}])
    with pytest.raises(RunLost):
        first.samples(2, [{"response": "late"}])
    assert pages() == [(0, "ä"), (0, "b"), (2, "ä"), (2, "b"), (4, "c")]
