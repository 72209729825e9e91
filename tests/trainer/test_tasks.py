"""How a run ends, depending on its recipe: each error becomes a text on the round's page."""

import threading
import weakref
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore, digest_folder
from app.db import make_session_factory
from app.errors import InvalidInput, ModelUnavailable
from app.models import Comparison, Metric, Project, Round, Run
from app.models import Completion as Stored
from app.rounds import service, stages
from app.settings import Settings
from app.specs import RUN_SPEC
from tests import factories
from tests.rounds.loop import config, frozen, jobs, last_run, make_project
from tests.trainer.conftest import build_model
from trainer.batching import data
from trainer.checkpoints import Checkpoints
from trainer.recipes import reward, sample
from trainer.recipes.sample import Completion, OnCompletions
from trainer.reporting import Reporter, TrainingDiverged
from trainer.service import tasks
from trainer.service.recording import RunRecorder, WorkerStopping, patiently
from trainer.service.tasks import MAX_ATTEMPTS, Runner, describe


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)


@pytest.fixture
def runner(sessions: sessionmaker[Session], settings: Settings) -> Runner:
    return Runner(sessions, ArtifactStore(settings.artifacts_root), threading.Event(), settings)


@pytest.fixture
def round_(session: Session, runner: Runner, tmp_path: Path) -> Round:
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"))
    round_ = service.start(session, runner.store, project, factories.user(session, "operator"), config())
    frozen(session, runner.store, round_)
    session.commit()
    return round_


def reload(session: Session, round_: Round) -> Run:
    session.rollback()
    session.expire_all()
    return last_run(session, round_)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the reward recipe report a step and then fail."""

    def train(_spec: object, _store: object, reporter: Reporter, _folder: Path, *_: object) -> None:
        reporter.metrics(1, {"loss": 0.5})
        reporter.progress(1, 2, "training the reward model")
        raise error

    monkeypatch.setattr(reward, "train", train)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModelUnavailable("The model x is gone.", "Bring it back."), "The model x is gone. Bring it back."),
        (MemoryError(), "The machine ran out of memory. Retry with more memory, or start anew with"),
        (ZeroDivisionError("by\nzero"), "ZeroDivisionError: by (unexpected; the worker's log has the details)"),
        (OSError(28, "No space left on device"), "no room left on the disk"),
    ],
)
def test_an_error_fails_the_round_in_words(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    fail_with(monkeypatch, error)
    runner.execute(last_run(session, round_).id)
    run = reload(session, round_)
    assert (run.state, round_.state) == ("failed", "failed")
    assert words in (round_.error or "")
    assert run.progress_message == "training the reward model"
    assert run.device is not None
    assert run.device.startswith("CPU, ")
    assert f"Attempt 1 begins on {run.device}." in run.log
    assert "step 1: loss 0.5" in run.log
    assert f"ERROR Run {run.id} (reward) failed" in run.log
    assert list((runner.store.root / ".staging").iterdir()) == []
    assert not runner.store.exists(service.output_of(run.id))


def test_the_database_takes_what_an_error_says_of_a_name_that_is_no_text(session: Session, round_: Round) -> None:
    # Do not let a run fail and log it: pytest-xdist fails on half a surrogate pair in a log.
    message = describe(ModelUnavailable("The weights of \udce9\0 are a pickle."))
    service.run_failed(session, last_run(session, round_), message)
    session.commit()
    reload(session, round_)
    assert "The weights of ? are a pickle." in (round_.error or "")


def test_a_reward_model_says_what_it_thinks_of_every_comparison(
    session: Session, runner: Runner, round_: Round
) -> None:
    runner.execute(last_run(session, round_).id)
    session.rollback()
    said = select(Comparison.reward_trained, Comparison.reward_p_b).where(
        Comparison.project_id == round_.project_id, Comparison.reward_model_id == round_.reward_model_id
    )
    rows = session.execute(said).all()
    assert [row.reward_trained for row in rows].count(True) == 20  # of make_project's train prompts
    assert [row.reward_trained for row in rows].count(False) == 2  # held-out
    result = session.scalar(select(Run.result).where(Run.round_id == round_.id, Run.kind == "reward"))
    code = (result or {})["code"]
    assert (code["torch"], len(code["sources"])) == (version("torch"), 64)
    assert all(0 < row.reward_p_b < 1 for row in rows)


def test_a_cancelled_run_stops_at_its_next_report(session: Session, runner: Runner, round_: Round) -> None:
    run = last_run(session, round_)
    original = reward.train

    def cancel_while_training(
        spec: object, store: object, reporter: RunRecorder, folder: Path, *rest: object
    ) -> object:
        service.cancel(session, round_, factories.user(session, "operator"))
        session.commit()
        return original(spec, store, reporter, folder, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reward, "train", cancel_while_training)
        runner.execute(run.id)
    run = reload(session, round_)
    assert (run.state, round_.state) == ("cancelled", "cancelled")
    assert not runner.store.exists(service.output_of(run.id))


def test_a_stopping_worker_gives_the_run_back(session: Session, runner: Runner, round_: Round) -> None:
    runner.stopping.set()
    runner.execute(last_run(session, round_).id)
    run = reload(session, round_)
    assert (run.state, run.attempts, round_.state) == ("queued", 0, "reward")
    assert jobs(session)[1:] == [
        run.id,
        run.id,
    ]  # the real job that is running, and the new one after it


def test_a_finished_run_is_not_done_again(session: Session, runner: Runner, round_: Round) -> None:
    run = last_run(session, round_)
    service.run_started(session, run)
    service.run_finished(session, runner.store, run, {}, "digest")
    session.commit()
    waiting = jobs(session)
    runner.execute(run.id)
    runner.execute(10**9)  # a job whose run does not exist
    assert run.attempts == 1
    assert jobs(session) == waiting


def test_a_worker_that_slept_leaves_the_model_of_the_one_that_replaced_it(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = last_run(session, round_)
    location = service.output_of(run.id)

    def sleep_through_the_end(_spec: object, _store: object, _reporter: Reporter, folder: Path, *_: object) -> object:
        (folder / "model").write_text("late")
        with runner.store.folder(location) as other:
            (other / "model").write_text("recorded")
        session.refresh(run)
        service.run_started(session, run)
        service.run_finished(session, runner.store, run, {}, "digest")
        session.commit()
        return data.EncodedPairs([], [], ())  # any result that can be turned into a dictionary

    monkeypatch.setattr(reward, "train", sleep_through_the_end)
    runner.execute(run.id)
    assert (runner.store.resolve(location) / "model").read_text() == "recorded"
    assert reload(session, round_).kind == "dpo"


def test_a_worker_that_slept_at_the_last_moment_leaves_the_checkpoints_of_the_one_that_replaced_it(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = last_run(session, round_)
    others = Checkpoints(runner.store, service.checkpoints_of(run.id), RUN_SPEC.validate_python(run.spec))

    def sleep(_folder: Path) -> str:
        session.refresh(run)
        service.run_started(session, run)
        session.commit()
        others.save(7, {}, {})
        return "digest"

    monkeypatch.setattr(reward, "train", lambda *_: data.EncodedPairs([], [], ()))
    monkeypatch.setattr(tasks, "digest_folder", sleep)
    runner.execute(run.id)
    assert reload(session, round_).state == "running"
    assert others.any()


def test_a_model_that_was_swapped_on_disk_is_not_used(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner.store.folder("models/run-7") as folder:
        (folder / "weights").write_text("trained")
    run, digest = last_run(session, round_), digest_folder(runner.store.root / "models/run-7")
    factories.model(session, session.get_one(Project, round_.project_id), base="models/run-7", digest=digest)
    run.spec = run.spec | {"backbone": {"base": "models/run-7", "adapter": None}}
    session.commit()
    spec = RUN_SPEC.validate_python(run.spec)
    runner._require_unchanged(spec)
    read: list[Path] = []
    monkeypatch.setattr(tasks, "digest_folder", lambda folder: read.append(folder) or digest_folder(folder))
    runner._require_unchanged(spec)
    assert read == []  # unchanged files are not read again
    (runner.store.root / "models/run-7/weights").write_text("swapped")
    runner.execute(run.id)
    assert reload(session, round_).state == "failed"
    assert "models/run-7 is not what was trained" in (round_.error or "")


def test_an_attempt_forgets_the_metrics_of_the_one_before(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = last_run(session, round_)
    session.add(Metric(run_id=run.id, name="loss", step=99, value=1.0))
    session.commit()
    with runner.store.file(f"{service.checkpoints_of(run.id)}/precision") as path:
        path.write_text("float32")  # the stored precision stays; there is no checkpoint to resume from
    fail_with(monkeypatch, MemoryError())
    runner.execute(run.id)
    session.rollback()
    assert [metric.step for metric in session.scalars(select(Metric))] == [1]


def test_a_run_that_goes_on_from_a_checkpoint_keeps_its_metrics(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = last_run(session, round_)
    session.add(Metric(run_id=run.id, name="loss", step=40, value=1.0))
    session.commit()
    spec, key = RUN_SPEC.validate_python(run.spec), runner.settings.signing_key
    kept = Checkpoints(runner.store, service.checkpoints_of(run.id), spec, key=key)
    kept.save(40, {}, {})
    fail_with(monkeypatch, MemoryError())
    runner.execute(run.id)
    session.rollback()
    assert sorted(metric.step for metric in session.scalars(select(Metric))) == [1, 40]
    assert kept.any()  # kept, so that a retry can resume from it


def test_what_was_said_before_a_checkpoint_is_never_lost(session: Session, runner: Runner, round_: Round) -> None:
    """A resumed run does not report it again. Metrics are buffered for a second before they are written."""
    taken = runner._take(last_run(session, round_).id)
    assert taken is not None
    spec, recorder = taken
    recorder.progress(0, 9)  # this writes, so nothing else is written for a second
    recorder.metrics(1, {"loss": 0.5})

    class Killed(Exception):
        pass

    def die(step: int) -> None:
        raise Killed

    checkpoints = runner._checkpoints(spec, recorder)
    checkpoints.on_saved = die
    with pytest.raises(Killed):
        checkpoints.save(1, {}, {})
    session.rollback()
    assert [(metric.step, metric.value) for metric in session.scalars(select(Metric))] == [(1, 0.5)]


@pytest.mark.parametrize("error", [TrainingDiverged("The loss became nan."), WorkerStopping()])
def test_the_last_words_of_a_run_that_ends_early_are_kept(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def train(_spec: object, _store: object, reporter: Reporter, _folder: Path, *_: object) -> None:
        reporter.progress(0, 2)
        reporter.metrics(1, {"loss": 0.5})
        raise error

    monkeypatch.setattr(reward, "train", train)
    runner.execute(last_run(session, round_).id)
    session.rollback()
    assert [(metric.step, metric.value) for metric in session.scalars(select(Metric))] == [(1, 0.5)]


def test_deaths_after_a_checkpoint_do_not_count(session: Session, runner: Runner, round_: Round) -> None:
    run = last_run(session, round_)
    for attempt in range(1, 3 * MAX_ATTEMPTS + 1):
        taken = runner._take(run.id)
        assert taken is not None, f"attempt {attempt} was refused"
        spec, recorder = taken
        runner._checkpoints(spec, recorder).save(attempt, {}, {})
    run = reload(session, round_)
    assert (run.attempts, run.attempts_since_checkpoint) == (3 * MAX_ATTEMPTS, 0)
    for _ in range(MAX_ATTEMPTS):
        assert runner._take(run.id) is not None
    assert runner._take(run.id) is None
    assert "The worker died 3 times" in (reload(session, round_).error or "")


def test_sampling_goes_on_however_often_its_worker_dies(
    session: Session, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"))
    project.generation = project.generation | {"batch_size": 16}
    run = service.begin_sampling(session, runner.store, project)
    session.commit()

    class Killed(BaseException):
        pass

    def sample_once(_spec: object, _store: object, _reporter: object, store: OnCompletions, *rest: object) -> object:
        def store_and_die(batch: Sequence[Completion]) -> None:
            store(batch)
            raise Killed

        return original(_spec, _store, _reporter, store_and_die, *rest)  # type: ignore[arg-type]

    original = sample.sample
    with monkeypatch.context() as patched:
        patched.setattr(sample, "sample", sample_once)
        for _ in range(MAX_ATTEMPTS):
            with pytest.raises(Killed):
                runner.execute(run.id)
    runner.execute(run.id)
    session.refresh(run)
    assert run.state == "succeeded", run.error
    ends = session.scalars(select(Stored.finish_reason).where(Stored.run_id == run.id)).all()
    assert len(ends) == 22 * 4  # of make_project's prompts
    assert run.result is not None
    assert (run.result["samples"], run.result["finished"]) == (88, ends.count("eos"))  # not only the last attempt's


def test_checkpoints_go_with_a_cancelled_or_finished_run(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = last_run(session, round_)
    location = service.checkpoints_of(run.id)

    def succeed(spec: object, store: object, reporter: RunRecorder, folder: Path, *_: object) -> object:
        runner._checkpoints(spec, reporter).save(1, {}, {})  # type: ignore[arg-type]
        return data.EncodedPairs([], [], ())

    monkeypatch.setattr(reward, "train", succeed)
    runner.execute(run.id)
    assert reload(session, round_).kind == "dpo"
    assert not runner.store.exists(location)

    waiting = last_run(session, round_)
    with runner.store.folder(f"{service.checkpoints_of(waiting.id)}/step-00000001"):
        pass
    service.cancel(session, round_, factories.user(session, "operator"))
    session.commit()
    runner.execute(waiting.id)  # its job, still in the queue
    assert not runner.store.exists(service.checkpoints_of(waiting.id))


@pytest.mark.parametrize("ending", ["succeeded", "failed"])
def test_a_workers_next_run_finds_the_memory_of_the_one_before(
    session: Session,
    runner: Runner,
    round_: Round,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    models = []
    original_model, original_save = reward.frozen_reward_model, reward.save_reward_model

    def make(*arguments: object, **options: object) -> object:
        model = original_model(*arguments, **options)  # type: ignore[arg-type]
        models.append(weakref.ref(model))
        return model

    def save(*arguments: object) -> None:
        if ending == "failed":
            raise ModelUnavailable("It cannot be saved.")
        original_save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reward, "frozen_reward_model", make)
    monkeypatch.setattr(reward, "save_reward_model", save)
    monkeypatch.setattr(tasks.log, "disabled", True)  # pytest keeps logged errors and their frames
    run = last_run(session, round_)
    runner.execute(run.id)
    session.refresh(run)
    assert run.state == ending, run.error
    assert [model() for model in models] == [None]


def test_a_run_that_cannot_begin_fails_by_name(session: Session, runner: Runner, round_: Round) -> None:
    run = last_run(session, round_)
    run.spec = run.spec | {"backbone": None}
    session.commit()
    runner.execute(run.id)
    run = reload(session, round_)
    assert (run.state, round_.state) == ("failed", "failed")
    assert "specification of run" in (round_.error or "")
    assert "backbone" in (round_.error or "")


def test_a_run_left_over_by_an_ended_round_fails_and_leaves_the_round(
    session: Session, runner: Runner, round_: Round
) -> None:
    run = last_run(session, round_)
    round_.state = "done"
    session.commit()
    runner.execute(run.id)
    run = reload(session, round_)
    assert (run.state, round_.state, round_.error) == ("failed", "done", None)
    assert "A round that is done cannot see its run started" in (run.error or "")


def test_a_stage_that_cannot_begin_keeps_the_model_before_it(
    session: Session, runner: Runner, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = last_run(session, round_)

    def succeed(_spec: object, _store: object, _reporter: Reporter, folder: Path, *_: object) -> object:
        (folder / "model").write_text("trained")
        return data.EncodedPairs([], [], ())

    def refuse(*_: object) -> object:
        raise InvalidInput("There is no prompt left.", "Import some.")

    monkeypatch.setattr(reward, "train", succeed)
    with monkeypatch.context() as broken:
        broken.setattr(stages.Maker, "_policy_spec", refuse)
        runner.execute(run.id)
    assert reload(session, round_).state == "succeeded"
    assert round_.state == "failed"
    assert round_.error == "The stage “policy” could not begin. There is no prompt left. Import some."
    assert round_.reward_model_id is not None
    assert (runner.store.resolve(service.output_of(run.id)) / "model").read_text() == "trained"
    service.retry(session, runner.store, round_, factories.user(session, "operator"))
    session.commit()
    assert (reload(session, round_).kind, round_.state, round_.error) == ("dpo", "policy", None)


def test_the_database_is_waited_for_only_when_it_is_away() -> None:
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        patiently(broken)
    assert calls == [1]


def test_the_service_and_the_recipes_ask_for_the_same_number_of_comparisons() -> None:
    assert stages.MIN_PAIRS == data.MIN_PAIRS


def test_long_messages_are_cut() -> None:
    assert len(describe(RuntimeError("x" * 10_000))) < 700
