"""Starting, advancing, cancelling and retrying rounds, without a worker: the test reports results instead."""

import gzip
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_session_factory
from app.errors import Conflict, InvalidInput, PrefloopError, StorageFull
from app.models import AuditEvent, ModelVersion, Project, Prompt, Round, Run, Snapshot, User
from app.rounds import freezing, service
from app.rounds.snapshots import silent
from app.rows import AnswersRow, PromptRow
from app.specs import RUN_SPEC, DPOSpec, EvaluateSpec, ModelRef, PPOSpec, RewardSpec, SampleSpec
from tests import factories
from tests.rounds.loop import config, decided, frozen, jobs, last_run, leave_files, make_project


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


def begin(session: Session, store: ArtifactStore, project: Project, algorithm: str = "dpo", **values: object) -> Round:
    return service.start(session, store, project, factories.user(session, "operator"), config(algorithm, **values))


def start(session: Session, store: ArtifactStore, project: Project, algorithm: str = "dpo", **values: object) -> Round:
    """A round after freezing."""
    return frozen(session, store, begin(session, store, project, algorithm, **values))


def finish(session: Session, store: ArtifactStore, round_: Round) -> Run:
    """Do what the worker does with the round's waiting run if all goes well; return that run."""
    run = last_run(session, round_)
    service.run_started(session, run)
    leave_files(store, run)
    service.run_finished(session, store, run, {"kind": run.kind}, "digest")
    session.flush()
    return run


def test_a_result_may_quote_what_no_database_stores(session: Session, store: ArtifactStore, project: Project) -> None:
    """Models sometimes generate NUL, and monitors quote their worst examples."""
    run = last_run(session, start(session, store, project))
    service.run_started(session, run)
    leave_files(store, run)
    service.run_finished(session, store, run, {"examples": {"longer": ({"said": "a\0b", "value": 1.5},)}}, "digest")
    session.flush()
    session.refresh(run)
    assert run.result == {"examples": {"longer": [{"said": "a\ufffdb", "value": 1.5}]}}


def test_starting_freezes_enqueues_and_is_audited(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = begin(session, store, project, beta=0.3, reward_epochs=5)
    assert (round_.number, round_.state, round_.policy_before_id) == (1, "freezing", project.policy_id)
    assert (round_.snapshot_id, last_run(session, round_).kind) == (None, "freeze")
    assert jobs(session) == [last_run(session, round_).id]
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "round.started")).one()
    assert event.details["config"]["beta"] == 0.3

    frozen(session, store, round_)
    snapshot = session.get_one(Snapshot, round_.snapshot_id)
    assert snapshot.counts == {
        "train": 20,
        "heldout": 2,
        "ties": 0,
        "winners": 20,
        "judgments": 44,
        "new": 20,
        "earlier": {},
    }
    run = last_run(session, round_)
    assert (round_.state, jobs(session)[-1]) == ("reward", run.id)
    spec = RUN_SPEC.validate_python(run.spec)
    assert isinstance(spec, RewardSpec)
    assert (spec.backbone.base, spec.snapshot, spec.optimiser.epochs) == ("models/base", snapshot.location, 5)
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "round.frozen")).one()
    assert (event.actor_id, event.details) == (None, {"number": 1, "snapshot": snapshot.digest})


def test_a_rolled_back_start_leaves_no_round_no_run_and_no_job(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    session.commit()
    begin(session, store, project)
    assert len(jobs(session)) == 1
    session.rollback()
    assert jobs(session) == []
    assert session.scalar(select(func.count()).select_from(Round)) == 0
    assert session.scalar(select(func.count()).select_from(Run)) == 0


def test_a_round_walks_through_its_stages(session: Session, store: ArtifactStore, project: Project) -> None:
    base_id = project.policy_id
    round_ = start(session, store, project, reference="previous")
    reward_run = finish(session, store, round_)
    assert round_.state == "policy"
    reward = session.get_one(ModelVersion, round_.reward_model_id)
    assert (reward.role, reward.name, reward.base) == ("reward", "reward-1", f"models/run-{reward_run.id}")
    assert (reward.run_id, reward.parent_id, reward.digest) == (reward_run.id, base_id, "digest")
    assert project.policy_id == base_id

    policy_run = finish(session, store, round_)
    assert round_.state == "sampling"
    spec = RUN_SPEC.validate_python(policy_run.spec)
    assert isinstance(spec, DPOSpec)
    assert spec.reference == spec.policy
    policy = session.get_one(ModelVersion, round_.policy_after_id)
    assert project.policy_id == base_id  # until the round is done
    assert (policy.role, policy.name, policy.base, policy.adapter) == (
        "policy",
        "policy-1",
        "models/base",
        f"models/run-{policy_run.id}",
    )
    assert policy.card["snapshot"] == session.get_one(Snapshot, round_.snapshot_id).digest

    sample_spec = RUN_SPEC.validate_python(finish(session, store, round_).spec)
    assert isinstance(sample_spec, SampleSpec)
    assert [model.adapter for model in sample_spec.models] == [policy.adapter, None]
    assert sample_spec.heldout_models == 1  # what the base model says to held-out prompts, to compare the two
    assert round_.state == "evaluating"
    evaluate_spec = RUN_SPEC.validate_python(finish(session, store, round_).spec)
    assert isinstance(evaluate_spec, EvaluateSpec)
    assert (evaluate_spec.reference.base, evaluate_spec.reference.adapter) == ("models/base", None)
    assert evaluate_spec.reward_models == (reward.base,)
    assert evaluate_spec.before == ModelRef(base="models/base")
    assert (round_.state, round_.adopted, project.policy_id) == ("done", True, policy.id)
    assert round_.finished_at is not None
    assert [run.state for run in session.scalars(select(Run))] == ["succeeded"] * 5

    second = begin(session, store, project)
    assert (second.number, second.policy_before_id) == (2, policy.id)


def test_an_evaluation_is_given_what_the_reference_said_to_its_prompts(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """Samples of the reference with the same settings on held-out prompts; the oldest 16 of a prompt."""
    round_ = start(session, store, project)
    prompts = [factories.prompt(session, project, split="heldout") for _ in range(2)]
    train = factories.prompt(session, project, split="train")
    run, another = factories.run(session, project, "sample"), factories.model(session, project)
    alike = {"temperature": 1.0, "max_new_tokens": 8}

    def sample(prompt: Prompt, text: str, sampling: dict[str, float] = alike, **values: Any) -> None:
        given = {"run_id": run.id, "model_version_id": project.reference_id, "sampling": sampling} | values
        factories.completion(session, prompt, text, **given)

    for number in range(18):
        sample(prompts[0], f"answer {number}")
    sample(prompts[1], "colder", alike | {"temperature": 0.5})
    sample(prompts[1], "of another model", model_version_id=another.id)
    sample(prompts[1], "imported", run_id=None)
    sample(prompts[1], "alone")
    sample(train, "to a train prompt")
    while round_.state != "evaluating":
        finish(session, store, round_)
    spec = RUN_SPEC.validate_python(last_run(session, round_).spec)
    assert isinstance(spec, EvaluateSpec)
    assert spec.base_samples is not None
    rows = [AnswersRow.model_validate_json(line) for line in store.resolve(spec.base_samples).read_text().splitlines()]
    assert {row.prompt_id: row.texts for row in rows} == {
        prompts[0].id: tuple(f"answer {number}" for number in range(16)),
        prompts[1].id: ("alone",),
    }


def test_ppo_samples_from_train_prompts_and_scores_with_the_rounds_reward_model(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    round_ = start(session, store, project, "ppo", episodes=24, kl_target=2.5)
    finish(session, store, round_)
    spec = RUN_SPEC.validate_python(last_run(session, round_).spec)
    assert isinstance(spec, PPOSpec)
    assert (spec.episodes, spec.rollout_size, spec.kl_target) == (24, 24, 2.5)
    assert spec.reward_models == (f"models/run-{session.get_one(ModelVersion, round_.reward_model_id).run_id}",)
    prompts = [PromptRow.model_validate_json(line) for line in store.resolve(spec.prompts).read_text().splitlines()]
    assert {prompt.slices["split"] for prompt in prompts} == {"train"}
    assert len(prompts) == 20


def test_only_one_round_of_a_project_is_active(session: Session, store: ArtifactStore, project: Project) -> None:
    begin(session, store, project)
    with pytest.raises(Conflict, match="Round 1 is still freezing"):
        begin(session, store, project)


def test_two_people_starting_at_once_get_one_round(
    engine: Engine, session: Session, store: ArtifactStore, project: Project
) -> None:
    project_id = project.id
    operator_id = factories.user(session, "operator").id
    session.commit()
    sessions = make_session_factory(engine)
    barrier = threading.Barrier(4)
    errors: list[PrefloopError] = []

    def press_start() -> None:
        with sessions.begin() as mine:
            barrier.wait()
            try:
                operator = mine.get_one(service.User, operator_id)
                service.start(mine, store, mine.get_one(Project, project_id), operator, config())
            except PrefloopError as error:
                errors.append(error)

    threads = [threading.Thread(target=press_start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [Conflict] * 3
    assert len(session.scalars(select(Round)).all()) == 1
    assert len(jobs(session)) == 1


def test_what_cannot_be_trained_on_is_refused(session: Session, store: ArtifactStore) -> None:
    project = make_project(session, train=19, heldout=1)
    labelers = [factories.user(session).id, factories.user(session).id]
    decided(session, project, factories.prompt(session, project), labelers, preferences=(0, 0))
    with pytest.raises(InvalidInput, match="needs 20 decided comparisons with a winner to train on; there are 19"):
        begin(session, store, project)
    assert not service.preview(session, project, config()).can_start
    for _ in range(20):
        decided(session, project, factories.prompt(session, project), labelers, preferences=(0, 0))
    decided(session, project, factories.prompt(session, project), labelers)
    drawn = config(train_limit=20)  # 20 of them have a winner, but hardly all of the 20 that are drawn from 41
    assert any("among the 20 that" in each for each in service.preview(session, project, drawn).warnings)
    round_ = begin(session, store, project, train_limit=20)
    with pytest.raises(InvalidInput, match=r"there are [0-9]+ among the 20 that “Train on at most” leaves"):
        freezing.write(session, store, round_, silent)
    service.cancel(session, round_, factories.user(session, "operator"))
    project.policy_id = None
    with pytest.raises(InvalidInput, match="no model"):
        begin(session, store, project)


def test_a_rank_that_cannot_hold_what_the_policy_has_learned_is_refused(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    run = factories.run(session, project, spec={"lora": {"rank": 24, "alpha": 48}})
    trained = {"base": "models/base", "adapter": "models/run-1", "run_id": run.id}
    project.policy_id = factories.model(session, project, **trained).id
    seen = service.preview(session, project, config(lora_rank=16))
    assert not seen.can_start
    assert any("has LoRA rank 24; rank 16 cannot hold" in warning for warning in seen.warnings)
    with pytest.raises(InvalidInput, match=r"The policy's adapter has LoRA rank 24; rank 16 .* to 24 or more"):
        start(session, store, project, lora_rank=16)
    for fits in ({"lora_rank": 16, "lora": False}, {"lora_rank": 24}, {"lora_rank": 32}):
        assert service.preview(session, project, config(**fits)).can_start


def test_the_preview_counts_what_a_round_would_read(session: Session, store: ArtifactStore, project: Project) -> None:
    labelers = [factories.user(session).id, factories.user(session).id]
    decided(session, project, factories.prompt(session, project), labelers, preferences=(0, 0))
    factories.comparison(session, project)
    seen = service.preview(session, project, config())
    assert [seen.counts[name] for name in ("train", "winners", "heldout", "ties")] == [21, 20, 2, 1]
    assert (seen.waiting, seen.new_judgments) == (1, 46)
    assert any("Only 20 comparisons" in warning for warning in seen.warnings)
    assert seen.can_start
    session.commit()
    round_ = start(session, store, project)
    session.commit()
    after = service.preview(session, project, config())
    assert (after.new_judgments, after.active, after.can_start) == (0, round_, False)


def test_a_round_that_ended_before_it_was_frozen_has_read_nothing(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    given = service.preview(session, project, config()).new_judgments
    round_ = begin(session, store, project)
    session.commit()
    assert given > service.preview(session, project, config()).new_judgments == 0
    service.cancel(session, round_, factories.user(session, "operator"))
    session.commit()
    assert (round_.state, round_.snapshot_id) == ("cancelled", None)
    assert service.preview(session, project, config()).new_judgments == given


def test_a_round_on_the_same_data_is_warned_of(session: Session, store: ArtifactStore, project: Project) -> None:
    def is_warned_of() -> bool:
        return any("on the same data again" in each for each in service.preview(session, project, config()).warnings)

    labelers = [factories.user(session).id]
    prompt = factories.prompt(session, project)
    reviewed = decided(session, project, prompt, labelers, preferences=(1,))
    reviewed.state = "in_review"
    round_ = start(session, store, project)
    assert not is_warned_of()  # nobody has learned from them yet
    while round_.state != "done":
        finish(session, store, round_)
    session.commit()
    assert is_warned_of()
    repeated = {"purpose": "repeat", "repeat_of_id": reviewed.id}  # it measures the labeler only
    decided(session, project, prompt, labelers, preferences=(1,), **repeated)
    session.commit()
    assert service.preview(session, project, config()).new_judgments == 0
    assert is_warned_of()
    reviewed.state = "settled"
    session.flush()
    assert not is_warned_of()


def test_cancelling_a_waiting_round_ends_it_at_once(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = start(session, store, project)
    service.cancel(session, round_, factories.user(session, "operator"))
    assert (round_.state, last_run(session, round_).state) == ("cancelled", "cancelled")
    with pytest.raises(Conflict, match="already cancelled"):
        service.cancel(session, round_, factories.user(session, "operator"))
    assert start(session, store, project).number == 2


def test_cancelling_a_running_round_asks_the_worker(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = start(session, store, project)
    run = last_run(session, round_)
    service.run_started(session, run)
    assert round_.state == "reward"
    service.cancel(session, round_, factories.user(session, "operator"))
    assert (round_.state, run.state, run.cancel_requested) == ("reward", "running", True)
    service.run_cancelled(session, run)
    assert (round_.state, run.state) == ("cancelled", "cancelled")


def test_a_cancel_that_waited_for_a_stage_to_end_cancels_the_next_one(
    session: Session, engine: Engine, store: ArtifactStore, project: Project
) -> None:
    round_ = start(session, store, project)
    operator = factories.user(session, "operator")
    session.commit()
    finish(session, store, round_)  # not committed: whoever cancels now waits for the run's row

    def cancel() -> None:
        with make_session_factory(engine).begin() as other:
            service.cancel(other, other.get_one(Round, round_.id), other.get_one(User, operator.id))

    thread = started_and_waiting(cancel, engine)
    session.commit()
    thread.join()
    session.expire_all()
    assert (round_.state, last_run(session, round_).kind) == ("cancelled", "dpo")
    assert last_run(session, round_).state == "cancelled"


def started_and_waiting(work: Callable[[], None], engine: Engine) -> threading.Thread:
    """Run it in a new thread; return once it waits for another transaction."""
    thread = threading.Thread(target=work)
    thread.start()
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        while thread.is_alive() and not watcher.scalar(waiting):
            pass
    assert thread.is_alive()
    return thread


def test_a_cancel_that_waited_for_a_retry_leaves_no_run_without_its_round(
    session: Session, engine: Engine, store: ArtifactStore, project: Project
) -> None:
    round_ = start(session, store, project)
    operator = factories.user(session, "operator")
    service.run_failed(session, last_run(session, round_), "Out of memory.")
    session.commit()
    service.retry(session, store, round_, operator)
    refused: list[Conflict] = []

    def cancel() -> None:
        try:
            with make_session_factory(engine).begin() as other:
                service.cancel(other, other.get_one(Round, round_.id), other.get_one(User, operator.id))
        except Conflict as error:
            refused.append(error)

    thread = started_and_waiting(cancel, engine)
    session.commit()
    thread.join()
    session.expire_all()
    assert len(refused) == 1
    assert (round_.state, last_run(session, round_).state) == ("reward", "queued")
    service.cancel(session, round_, operator)
    assert (round_.state, last_run(session, round_).state) == ("cancelled", "cancelled")


def test_a_policy_finished_after_the_cancel_is_kept_but_not_used(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    base_id = project.policy_id
    round_ = start(session, store, project)
    finish(session, store, round_)
    service.run_started(session, last_run(session, round_))
    service.cancel(session, round_, factories.user(session, "operator"))
    service.run_finished(session, store, last_run(session, round_), {}, "digest")
    assert round_.state == "cancelled"
    assert round_.policy_after_id is not None
    assert project.policy_id == base_id
    # What only an unused policy has learned from is new to the next round.
    start(session, store, project, replay_share=0.0)


@pytest.mark.parametrize("stage", ["reward", "policy", "sampling", "evaluating"])
def test_a_failed_round_is_retried_in_the_stage_that_failed(
    session: Session, store: ArtifactStore, project: Project, stage: str
) -> None:
    round_ = start(session, store, project)
    while last_run(session, round_).kind != {"policy": "dpo", "sampling": "sample", "evaluating": "evaluate"}.get(
        stage, stage
    ):
        finish(session, store, round_)
    run = last_run(session, round_)
    service.run_started(session, run)
    service.run_failed(session, run, "The disk is full.")
    session.flush()
    assert (round_.state, round_.error, run.error) == ("failed", "The disk is full.", "The disk is full.")
    models = session.scalar(select(func.count()).select_from(ModelVersion))
    runs = session.scalar(select(func.count()).select_from(Run))

    service.retry(session, store, round_, factories.user(session, "operator"))
    session.flush()
    assert (round_.state, round_.error, round_.finished_at) == (stage, None, None)
    assert (run.state, run.attempts, run.error) == ("queued", 0, None)
    assert jobs(session)[-1] == run.id
    assert session.scalar(select(func.count()).select_from(ModelVersion)) == models
    assert session.scalar(select(func.count()).select_from(Run)) == runs
    finish(session, store, round_)
    assert round_.state != stage


def test_only_the_newest_failed_round_can_be_retried(session: Session, store: ArtifactStore, project: Project) -> None:
    operator = factories.user(session, "operator")
    failed = start(session, store, project)
    with pytest.raises(Conflict, match="not failed"):
        service.retry(session, store, failed, operator)
    service.run_started(session, last_run(session, failed))
    service.run_failed(session, last_run(session, failed), "broken")
    newer = begin(session, store, project)
    with pytest.raises(Conflict, match="Round 2 is still freezing"):
        service.retry(session, store, failed, operator)
    service.cancel(session, newer, operator)
    with pytest.raises(Conflict, match="newer round"):
        service.retry(session, store, failed, operator)


def test_a_full_disk_leaves_no_snapshot(session: Session, store: ArtifactStore, project: Project, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    round_ = begin(session, store, project)
    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(StorageFull):
        freezing.write(session, store, round_, silent)
    assert session.scalar(select(func.count()).select_from(Snapshot)) == 0
    assert not list(store.root.rglob("*.gz"))


@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_long_responses_leave_room_for_their_prompts_in_every_stage(
    session: Session, store: ArtifactStore, project: Project, algorithm: str
) -> None:
    round_ = start(session, store, project, algorithm, max_new_tokens=2000)
    while round_.state != "done":
        assert last_run(session, round_).spec.get("max_length", 2001) > 2000
        finish(session, store, round_)


def test_sampling_begins_outside_a_round_once(session: Session, store: ArtifactStore, project: Project) -> None:
    run = service.begin_sampling(session, store, project)
    spec = RUN_SPEC.validate_python(run.spec)
    assert isinstance(spec, SampleSpec)
    assert ([model.base for model in spec.models], spec.generation.samples_per_prompt) == (["models/base"], 4)
    prompts = [PromptRow.model_validate_json(line) for line in store.resolve(spec.prompts).read_text().splitlines()]
    assert sorted({prompt.slices["split"] for prompt in prompts}) == ["heldout", "train"]
    assert jobs(session) == [run.id]
    with pytest.raises(Conflict, match="already"):
        service.begin_sampling(session, store, project)
    operator = factories.user(session, "operator")
    service.cancel_run(session, run, operator)
    assert run.state == "cancelled"
    service.retry_run(session, run, operator)
    assert (run.state, jobs(session)) == ("queued", [run.id, run.id])


def test_sampling_again_from_the_same_policy_asks_for_other_responses(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    first = service.begin_sampling(session, store, project)
    service.run_started(session, first)
    service.run_finished(session, store, first, {})
    second = service.begin_sampling(session, store, project)
    assert first.spec["models"] == second.spec["models"]
    assert first.spec["seed"] != second.spec["seed"]


def test_prompts_asked_about_least_are_sampled_first(session: Session, store: ArtifactStore, project: Project) -> None:
    fresh = [factories.prompt(session, project).id for _ in range(3)]
    factories.prompt(session, project, split="regression")
    round_ = start(session, store, project, prompts=5)
    while last_run(session, round_).kind != "sample":
        finish(session, store, round_)
    spec = RUN_SPEC.validate_python(last_run(session, round_).spec)
    assert isinstance(spec, SampleSpec)
    rows = [PromptRow.model_validate_json(line) for line in store.resolve(spec.prompts).read_text().splitlines()]
    assert set(fresh) <= {row.id for row in rows}
    assert len(rows) == 5
    assert sum(row.slices["split"] == "heldout" for row in rows) == 1  # at most three in ten, at least one
