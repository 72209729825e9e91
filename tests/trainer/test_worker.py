"""The worker as a separate process: killed, interrupted, stopped, and without its database for a while."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_engine, make_session_factory
from app.models import Comparison, Completion, Metric, Project, Round, Run
from app.postgres import database, get_server
from app.rounds import service
from app.schema import migrate
from app.settings import Settings
from tests import factories
from tests.rounds.loop import config, frozen, jobs, last_run, make_project
from tests.rounds.test_adoption import judge
from tests.trainer.conftest import build_model
from tests.waiting import wait_for
from trainer.service import worker
from trainer.service.recording import RunLost, RunRecorder
from trainer.service.tasks import MAX_ATTEMPTS
from trainer.service.worker import STALLED_SECONDS, Worker, recover, work_until_empty

pytestmark = pytest.mark.long


def begin_round(session: Session, settings: Settings, tmp_path: Path, **values: object) -> Round:
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"), train=20, heldout=4)
    store = ArtifactStore(settings.artifacts_root)
    round_ = service.start(session, store, project, factories.user(session, "operator"), config(**values))
    frozen(session, store, round_)
    session.commit()
    return round_


def state(session: Session, row: Run | Round) -> str:
    session.rollback()
    session.refresh(row)
    return row.state


def count(session: Session, query: object) -> int:
    session.rollback()
    return session.scalar(query) or 0  # type: ignore[call-overload]


def no_doubles(session: Session) -> None:
    """Every sample is stored once, and every pair is asked once."""
    samples = session.execute(select(Completion.run_id, Completion.prompt_id, Completion.sample_index)).all()
    sampled = [row for row in samples if row[0] is not None]
    assert len(sampled) == len(set(sampled))
    pairs = session.execute(select(Comparison.completion_a_id, Comparison.completion_b_id)).all()
    assert max(Counter(pairs).values()) == 1


def test_a_killed_workers_round_is_finished_by_the_next(
    session: Session, settings: Settings, tmp_path: Path, run_worker: Callable[..., ForkServerProcess]
) -> None:
    round_ = begin_round(
        session, settings, tmp_path, reward_trunk="trained", reward_epochs=20, prompts=24, samples_per_prompt=16
    )
    first = run_worker()
    run = last_run(session, round_)
    trained = select(func.count()).select_from(Metric).where(Metric.run_id == run.id)
    wait_for(lambda: count(session, trained) > 0, "training")
    first.kill()
    first.join()
    assert state(session, run) == "running"

    second = run_worker()
    wait_for(lambda: state(session, run) == "succeeded", "the run's recovery")
    session.refresh(run)
    assert run.attempts == 2
    # The steps of the first attempt are not mixed with those of the second.
    assert count(session, select(func.count()).where(Metric.run_id == run.id, Metric.name == "loss")) == 60

    # Repeat this while samples are being stored.
    stored = select(func.count()).select_from(Completion).where(Completion.run_id.is_not(None))
    wait_for(lambda: count(session, stored) > 0, "sampling")
    second.kill()
    second.join()
    run_worker()
    wait_for(lambda: state(session, round_) in ("done", "failed"), "the round's end")
    assert round_.error is None
    sampling = session.scalars(select(Run).where(Run.kind == "sample")).one()
    assert (
        count(session, stored.where(Completion.run_id == sampling.id)) == (24 + 4) * 16
    )  # the base model answers the held-out prompts
    no_doubles(session)


def test_a_worker_makes_what_people_prefer_the_projects_policy(
    session: Session, run_worker: Callable[..., ForkServerProcess]
) -> None:
    project = make_project(session, "models/none")
    new = factories.model(session, project, name="policy-1")
    values = {"policy_before_id": project.policy_id, "policy_after_id": new.id}
    round_ = factories.round_(session, project, number=1, **values)
    judge(session, project, round_, won=10, lost=0)
    session.commit()
    run_worker()
    adopted = select(func.count()).where(Project.id == project.id, Project.policy_id == new.id)
    wait_for(lambda: count(session, adopted) == 1, "the promotion")


def test_a_database_without_a_schema_is_told_and_not_waited_for(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)  # this process must continue
    with pytest.raises(SystemExit) as ended:
        worker.main()
    assert ended.value.code == 1
    assert "prefloop migrate" in capsys.readouterr().err


def test_a_stopped_worker_gives_its_run_back(
    session: Session, settings: Settings, tmp_path: Path, run_worker: Callable[..., ForkServerProcess]
) -> None:
    round_ = begin_round(session, settings, tmp_path, reward_trunk="trained", reward_epochs=100)
    process = run_worker()
    run = last_run(session, round_)
    trained = select(func.count()).select_from(Metric).where(Metric.run_id == run.id)
    wait_for(lambda: count(session, trained) > 0, "training")
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    assert state(session, run) == "queued"
    assert run.attempts == 0
    assert jobs(session) == [run.id]
    assert count(session, text("SELECT count(*) FROM procrastinate_workers")) == 0


def test_a_worker_stops_within_seconds_though_run_and_database_do_not_answer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(settings, settings.database_url or "")
    answered = threading.Event()

    async def busy(until_empty: bool) -> None:
        while not answered.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def serve() -> None:
        await asyncio.wait_for(worker.serve(), 60)
        answered.set()

    monkeypatch.setattr("trainer.service.worker.GRACE_SECONDS", 0.05)
    monkeypatch.setattr("trainer.service.worker.GIVE_BACK_SECONDS", 0.05)
    monkeypatch.setattr(worker, "_listen_to_signals", lambda stop: stop.set())
    monkeypatch.setattr(worker, "_work", busy)
    monkeypatch.setattr(worker.runner, "give_back", answered.wait)
    try:
        asyncio.run(serve())
    finally:
        answered.set()
        worker.engine.dispose()


def test_an_idle_worker_costs_nothing_and_stops_at_once(
    session: Session, run_worker: Callable[..., ForkServerProcess]
) -> None:
    process = run_worker()
    wait_for(
        lambda: count(session, text("SELECT count(*) FROM procrastinate_workers")) == 2, "the worker's start"
    )  # two queues
    idle = psutil.Process(process.pid)
    before, began = idle.cpu_times(), time.monotonic()
    heartbeat = text("SELECT extract(epoch FROM max(last_heartbeat))::bigint FROM procrastinate_workers")
    first = count(session, heartbeat)
    wait_for(lambda: count(session, heartbeat) >= first + 6, "two heartbeats")
    after = idle.cpu_times()
    used = after.user + after.system - before.user - before.system
    assert used / (time.monotonic() - began) < 0.05
    idle.send_signal(signal.SIGINT)
    process.join(60)
    assert process.exitcode == 0


def test_a_run_that_kills_its_worker_three_times_fails_by_name(
    session: Session, settings: Settings, tmp_path: Path
) -> None:
    round_ = begin_round(session, settings, tmp_path)
    run = last_run(session, round_)
    for _ in range(MAX_ATTEMPTS):
        service.run_started(session, run)
    run.progress_message = "training the reward model"
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    assert state(session, round_) == "failed"
    assert round_.error is not None
    assert "The worker died 3 times while training the reward model; it probably ran out of memory" in round_.error


def test_recovery_takes_only_what_nobody_works_on(session: Session, settings: Settings, tmp_path: Path) -> None:
    round_ = begin_round(session, settings, tmp_path)
    run = last_run(session, round_)
    assert recover(session) == []  # it waits in the queue
    alive = session.scalar(text("INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id"))
    session.execute(text("UPDATE procrastinate_jobs SET status = 'doing', worker_id = :id"), {"id": alive})
    assert recover(session) == []  # a worker is working on it
    session.execute(
        text("UPDATE procrastinate_workers SET last_heartbeat = now() - make_interval(secs => :s)"),
        {"s": STALLED_SECONDS + 1},
    )
    assert recover(session) == [run.id]
    assert jobs(session) == [run.id]
    assert recover(session) == []
    run.state = "succeeded"
    session.flush()
    session.execute(text("DELETE FROM procrastinate_jobs"))
    assert recover(session) == []  # it has ended


def test_a_worker_that_lost_its_run_writes_nothing(session: Session, engine: Engine, tmp_path: Path) -> None:
    run = factories.run(session, factories.project(session), "reward")
    service.run_started(session, run)
    session.commit()
    assert run.started_at is not None
    old = RunRecorder(make_session_factory(engine), run.id, run.started_at, threading.Event(), ArtifactStore(tmp_path))
    service.run_started(session, run)  # another worker took it
    session.commit()
    old.metrics(1, {"loss": 1.0})
    with pytest.raises(RunLost):
        old.flush()
    assert session.scalars(select(Metric)).all() == []


def test_a_lost_connection_in_the_middle_of_a_run_is_only_a_pause(
    session: Session, engine: Engine, settings: Settings, tmp_path: Path, run_worker: Callable[..., ForkServerProcess]
) -> None:
    round_ = begin_round(session, settings, tmp_path, reward_trunk="trained", reward_epochs=30, prompts=4)
    run_worker()
    run = last_run(session, round_)
    trained = select(func.count()).select_from(Metric).where(Metric.run_id == run.id)
    wait_for(lambda: count(session, trained) > 0, "training")
    me = session.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as connection:
        ended = connection.execute(
            text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                 "AND pid NOT IN (:me, pg_backend_pid()) AND datname = current_database()"),
            {"me": me},
        ).scalar()  # fmt: skip
    engine.dispose()
    assert ended
    assert ended >= 2
    wait_for(lambda: state(session, round_) in ("done", "failed"), "the round's end")
    assert round_.error is None
    assert run.attempts == 1
    no_doubles(session)


def _own_server(home: Path) -> AbstractContextManager[str]:
    return database(Settings(home=home, database_url=None, _env_file=None))


def test_a_database_that_goes_away_for_ten_seconds(
    tmp_path: Path, run_worker: Callable[..., ForkServerProcess]
) -> None:
    """A separate server is stopped and started again while a round runs."""
    # Do not use tmp_path for the database, because a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pf-") as home, _own_server(Path(home)) as url:
        settings = Settings(home=tmp_path, database_url=url, _env_file=None)
        migrate(url)
        engine = make_engine(url, pool_size=1)
        with make_session_factory(engine)() as session:
            round_ = begin_round(session, settings, tmp_path, reward_trunk="trained", reward_epochs=60, prompts=4)
            worker = run_worker(url=url)
            run = last_run(session, round_)
            trained = select(func.count()).select_from(Metric).where(Metric.run_id == run.id)
            wait_for(lambda: count(session, trained) > 0, "training")
            session.rollback()

            server = get_server(Path(home) / "postgres", cleanup_mode=None)
            server.stop()
            time.sleep(10)  # this is the outage itself, not a wait
            server.start()

            wait_for(lambda: state(session, round_) in ("done", "failed"), "the round's end")
            assert round_.error is None
            assert run.attempts == 1
            assert worker.is_alive()
            no_doubles(session)
        engine.dispose()
        worker.terminate()
        worker.join(60)
        assert worker.exitcode == 0
