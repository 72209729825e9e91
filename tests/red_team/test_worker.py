"""An attempt and the worker as a separate process, killed while it answers."""

from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import Run
from app.settings import Settings
from tests import factories
from tests.red_team.attempts import project_with_model, run_of, send
from tests.trainer.conftest import build_model
from tests.waiting import wait_for


def test_what_a_killed_worker_left_is_answered_by_the_next(
    session: Session, settings: Settings, tmp_path: Path, run_worker: Callable[..., ForkServerProcess]
) -> None:
    build_model(tmp_path / "model")
    project = project_with_model(session, str(tmp_path / "model"), generation={"max_new_tokens": 200})
    attempt = send(session, project, factories.user(session), settings.artifacts_root)
    run = run_of(session, attempt)
    session.commit()

    def state() -> str:
        session.rollback()
        session.refresh(run)
        return run.state

    first = run_worker()
    wait_for(lambda: state() == "running", "the run's start", every=0.005)
    first.kill()
    first.join()
    assert state() == "running"
    session.refresh(attempt)
    assert attempt.answer is None
    run_worker()
    wait_for(lambda: state() in ("succeeded", "failed"), "the run's end", every=0.2)
    session.refresh(attempt)
    assert (run.state, run.error, run.attempts) == ("succeeded", None, 2)
    assert attempt.answer is not None
    assert attempt.answer["n_tokens"] >= 1
    assert session.scalar(select(func.count()).select_from(Run)) == 1
