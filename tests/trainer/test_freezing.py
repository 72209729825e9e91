"""A round's first stage in the worker: what it reads, how it ends, and that incomplete snapshots are never used."""

import threading
import tracemalloc
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore, read_content
from app.datasets.undo import undo
from app.db import make_session_factory
from app.domain.replay import Reading
from app.labelers import service as labelers
from app.models import (
    Comparison,
    Completion,
    DataImport,
    Demonstration,
    Judgment,
    Project,
    Prompt,
    Round,
    Run,
    Snapshot,
    Thumb,
)
from app.rounds import freezing, queries, readiness, service, snapshots, views
from app.rows import PairRow
from app.settings import Settings
from tests import factories
from tests.rounds.loop import config, decided, jobs, last_run, make_project
from tests.waiting import wait_for
from trainer.service.tasks import MAX_ATTEMPTS, Runner


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)


@pytest.fixture
def runner(sessions: sessionmaker[Session], settings: Settings) -> Runner:
    return Runner(sessions, ArtifactStore(settings.artifacts_root), threading.Event(), settings)


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session, "models/base")


def begin(session: Session, runner: Runner, project: Project, algorithm: str = "dpo", **values: object) -> Round:
    operator = factories.user(session, "operator")
    round_ = service.start(session, runner.store, project, operator, config(algorithm, **values))
    session.commit()
    return round_


def work(session: Session, runner: Runner, round_: Round) -> Run:
    """Let the worker execute the round's waiting run."""
    run = last_run(session, round_)
    runner.execute(run.id)
    session.rollback()
    session.expire_all()
    return run


def read(session: Session, runner: Runner, round_: Round) -> list[PairRow]:
    snapshot = session.get_one(Snapshot, round_.snapshot_id)
    lines = read_content(runner.store.resolve(snapshot.location)).splitlines()
    return [PairRow.model_validate_json(line) for line in lines]


def snapshots_of(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Snapshot)) or 0


def test_what_is_decided_when_the_worker_freezes_is_read(session: Session, runner: Runner, project: Project) -> None:
    round_ = begin(session, runner, project)
    late = decided(session, project, factories.prompt(session, project), [factories.user(session).id], preferences=(2,))
    session.commit()
    run = work(session, runner, round_)
    assert (run.state, run.result and run.result["read"], round_.state) == ("succeeded", 23, "reward")
    assert last_run(session, round_).kind == "reward"
    assert late.id in {row.comparison_id for row in read(session, runner, round_)}
    # And so it is not new to the next round, although it came after the start of this round.
    assert readiness.preview(session, project, config()).new_judgments == 0
    assert views.stages_of(round_, queries.runs_of(session, round_.id))[0].state == "succeeded"


def test_what_leaves_too_little_fails_in_words_and_a_retry_reads_what_was_added(
    session: Session, runner: Runner, project: Project
) -> None:
    round_ = begin(session, runner, project)
    doubtful = session.scalars(select(Comparison).join(Prompt).where(Prompt.split == "train").limit(1)).one()
    doubtful.state = "in_review"
    session.commit()
    run = work(session, runner, round_)
    assert (run.state, round_.state, snapshots_of(session)) == ("failed", "failed", 0)
    assert "needs 20 decided comparisons with a winner to train on; there are 19. Label or" in (round_.error or "")
    doubtful.state = "settled"
    service.retry(session, runner.store, round_, factories.user(session, "operator"))
    session.commit()
    assert (round_.state, round_.error) == ("freezing", None)
    work(session, runner, round_)
    assert (run.state, round_.state, len(read(session, runner, round_))) == ("succeeded", "reward", 22)


def test_a_cancel_while_it_freezes_leaves_nothing(session: Session, runner: Runner, project: Project) -> None:
    round_ = begin(session, runner, project)
    original, operator = snapshots.pair_row, factories.user(session, "operator")
    session.commit()

    def cancel(row: object) -> PairRow:
        if round_.state == "freezing" and not last_run(session, round_).cancel_requested:
            session.rollback()
            service.cancel(session, round_, operator)
            session.commit()
        return original(row)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(snapshots, "pair_row", cancel)
        patched.setattr("trainer.service.recording.FLUSH_SECONDS", 0.0)
        run = work(session, runner, round_)
    assert (run.state, round_.state, round_.snapshot_id) == ("cancelled", "cancelled", None)
    assert (snapshots_of(session), list((runner.store.root / ".staging").iterdir())) == (0, [])
    assert begin(session, runner, project).number == 2


def test_a_labeler_removed_while_it_freezes_is_in_no_snapshot(
    session: Session, runner: Runner, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written file is discarded, because the removal's list of affected snapshots cannot contain it."""
    eve = factories.user(session, "labeler")
    theirs = decided(session, project, factories.prompt(session, project), [eve.id], preferences=(2,))
    admin, theirs_id = factories.user(session, "admin"), theirs.id
    round_ = begin(session, runner, project)
    written, original = [], freezing.write

    def write(*arguments: object) -> freezing.Frozen:
        found = original(*arguments)  # type: ignore[arg-type]
        if not written:
            labelers.remove(session, project, admin, eve.id, "spam")
            session.commit()
        written.append(found)
        return found

    monkeypatch.setattr(freezing, "write", write)
    run = work(session, runner, round_)
    assert (run.state, round_.state, run.attempts) == ("succeeded", "reward", 1)
    assert [theirs_id in found.read.ids for found in written] == [True, False]
    assert snapshots_of(session) == 1
    assert theirs_id not in {row.comparison_id for row in read(session, runner, round_)}
    assert labelers.uses(session, project, eve.id).snapshots == []


def test_what_is_withdrawn_while_it_freezes_is_in_no_snapshot(
    session: Session, runner: Runner, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = decided(session, project, factories.prompt(session, project), [factories.user(session).id], preferences=(1,))
    round_ = begin(session, runner, project)
    original, gone_id = freezing.write, gone.id

    def write(*arguments: object) -> freezing.Frozen:
        found = original(*arguments)  # type: ignore[arg-type]
        gone.state = "withdrawn"
        session.commit()
        return found

    monkeypatch.setattr(freezing, "write", write)
    work(session, runner, round_)
    assert (round_.state, snapshots_of(session)) == ("reward", 1)
    assert gone_id not in {row.comparison_id for row in read(session, runner, round_)}


@pytest.mark.parametrize("brought", ["judgments", "demonstrations", "thumbs"])
def test_an_import_undone_while_it_freezes_is_in_no_snapshot(
    session: Session, runner: Runner, project: Project, monkeypatch: pytest.MonkeyPatch, brought: str
) -> None:
    """Judgments on a comparison that was there before, a demonstration that PPO mixes in, a thumb that KTO learns from:
    undoing the import could not name the round."""
    people = [factories.user(session).id for _ in range(2)]
    there = decided(session, project, factories.prompt(session, project), people, preferences=(2, 2))
    for _ in range(2):
        factories.demonstration(session, factories.prompt(session, project))
        factories.thumb(session, factories.completion(session, factories.prompt(session, project)), liked=True)
    rows: dict[str, Any] = {key: [] for key in ("prompts", "comparisons", "judgments", "demonstrations", "thumbs")}
    table: Any = {"judgments": Judgment, "demonstrations": Demonstration, "thumbs": Thumb}[brought]
    rows[brought] = [session.scalars(select(table.id).order_by(table.id.desc())).first()]
    overlaps = {str(there.id): 1} if brought == "judgments" else {}
    imported = DataImport(project_id=project.id, files=["x.jsonl"], added={}, overlaps=overlaps, **rows)
    session.add(imported)
    algorithm, given = {
        "judgments": ("dpo", {}),
        "demonstrations": ("ppo", {"ptx": True}),
        "thumbs": ("dpo", {"loss": "kto"}),
    }[brought]
    round_ = begin(session, runner, project, algorithm, **given)
    written, original = [], freezing.write

    def write(*arguments: object) -> freezing.Frozen:
        found = original(*arguments)  # type: ignore[arg-type]
        if not written:
            undo(session, project, imported.id)
            session.commit()
        written.append(found)
        return found

    monkeypatch.setattr(freezing, "write", write)
    work(session, runner, round_)
    assert round_.state in ("reward", "policy"), round_.error
    read = [{"judgments": each.read, "demonstrations": each.mixed, "thumbs": each.thumbs}[brought] for each in written]
    sizes = [each and (each.counts["judgments"] if brought == "judgments" else len(each.ids)) for each in read]
    assert sizes == ([46, 45] if brought == "judgments" else [2, 1])


def test_what_was_deleted_while_it_freezes_fails_in_words(
    session: Session, runner: Runner, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        factories.demonstration(session, factories.prompt(session, project))
    gone = factories.demonstration(session, factories.prompt(session, project))
    round_ = begin(session, runner, project, "sft")
    original = freezing.write

    def write(*arguments: object) -> freezing.Frozen:
        found = original(*arguments)  # type: ignore[arg-type]
        session.delete(gone)
        session.commit()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(freezing, "write", write)
        work(session, runner, round_)
    assert (round_.state, snapshots_of(session)) == ("failed", 0)
    assert "was deleted while it was being frozen" in (round_.error or "")
    service.retry(session, runner.store, round_, factories.user(session, "operator"))
    session.commit()
    work(session, runner, round_)
    assert (round_.state, session.get_one(Snapshot, round_.snapshot_id).counts["train"]) == ("policy", 20)


def test_a_freeze_that_kills_its_worker_again_and_again_fails(
    session: Session, runner: Runner, project: Project
) -> None:
    round_ = begin(session, runner, project)
    run = last_run(session, round_)
    run.attempts_since_checkpoint, run.progress_message = MAX_ATTEMPTS, "writing comparisons"
    session.commit()
    work(session, runner, round_)
    assert round_.state == "failed"
    assert f"The worker died {MAX_ATTEMPTS} times while writing comparisons" in (round_.error or "")
    assert "Retry with more memory." in (round_.error or "")
    assert "microbatch" not in (round_.error or "")


@pytest.mark.long
def test_a_killed_worker_leaves_no_half_snapshot_and_the_next_one_goes_on(
    session: Session,
    engine: Engine,
    settings: Settings,
    runner: Runner,
    project: Project,
    run_worker: Callable[..., ForkServerProcess],
) -> None:
    """The first worker is killed with SIGKILL while it writes. It waits for a lock that the test holds."""
    round_ = begin(session, runner, project)
    staging = runner.store.root / ".staging"
    with engine.connect() as holder:
        holder.execute(text("LOCK TABLE completion IN ACCESS EXCLUSIVE MODE"))  # only rows with texts read it
        first = run_worker()
        wait_for(lambda: staging.exists() and any(staging.iterdir()), "the beginning of the file")
        first.kill()
        first.join()
        session.rollback()
        session.refresh(round_)
        assert (round_.state, last_run(session, round_).state, snapshots_of(session)) == ("freezing", "running", 0)
        assert not (runner.store.root / "snapshots").exists()
        session.rollback()
        holder.rollback()
    run = last_run(session, round_)
    session.rollback()
    run_worker()

    def ended() -> bool:
        session.rollback()
        session.refresh(run)
        return run.state == "succeeded"

    wait_for(ended, "the run's recovery")
    session.refresh(round_)
    assert (run.attempts, snapshots_of(session)) == (2, 1)
    assert {row.comparison_id for row in read(session, runner, round_)} == set(session.scalars(select(Comparison.id)))
    assert len(jobs(session)) <= 1


def test_a_snapshot_is_never_held_whole(session: Session, tmp_path: Path, project: Project) -> None:
    """200 comparisons with 100 kB each: 20 MB are written, and much less is in memory at any time."""
    labeler = factories.user(session).id
    for n in range(200):
        decided(session, project, factories.prompt(session, project), [labeler], preferences=(1,), texts=(f"{n}", "b"))
    session.execute(text("UPDATE completion SET text = text || repeat(md5(id::text), 1600)"))
    assert session.scalar(select(func.sum(func.length(Completion.text)))) > 20_000_000
    session.commit()
    session.expunge_all()
    project = session.scalars(select(Project)).one()
    store = ArtifactStore(tmp_path / "artifacts")
    found = snapshots.chosen(session, project.id, Reading())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.rounds.snapshot_queries.AT_ONCE", 10)
        tracemalloc.start()
        written = snapshots.write_comparisons(session, store, project.id, found)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(written.ids) == 222
    assert len(read_content(store.resolve(written.location))) > 20_000_000
    assert most < 5_000_000
