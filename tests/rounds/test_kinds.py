"""What rounds read besides comparisons (demonstrations, replayed comparisons), and stages that cannot begin."""

import gzip
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.labelers import service as labelers
from app.models import ModelVersion, Project, Prompt, Run, Snapshot, Thumb
from app.rounds import queries, service, views
from app.rows import DemonstrationRow
from app.settings import SamplingServer
from app.specs import RUN_SPEC, DPOSpec, EvaluateSpec, SampleSpec, SFTSpec
from tests import factories
from tests.rounds.loop import config, decided, last_run, make_project
from tests.rounds.test_service import finish, start
from trainer.batching.data import read_thumbs


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


def with_demonstrations(session: Session, project: Project, train: int, heldout: int = 0) -> None:
    for split, count in (("train", train), ("heldout", heldout)):
        for _ in range(count):
            factories.demonstration(session, factories.prompt(session, project, split=split))


def test_fine_tuning_makes_the_reference_of_later_rounds(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    with_demonstrations(session, project, 21, heldout=3)
    factories.demonstration(session, factories.prompt(session, project), state="rejected")
    factories.demonstration(session, factories.prompt(session, project, split="regression"))
    base_id = project.policy_id
    round_ = start(session, store, project, "sft", epochs=3)
    snapshot = session.get_one(Snapshot, round_.snapshot_id)
    assert snapshot.counts == {"train": 21, "heldout": 3, "demonstrations": 24}
    spec = RUN_SPEC.validate_python(finish(session, store, round_).spec)
    assert isinstance(spec, SFTSpec)
    assert (spec.policy.base, spec.demonstrations, spec.optimiser.epochs) == ("models/base", snapshot.location, 3)
    with gzip.open(store.resolve(spec.demonstrations), "rt") as lines:
        rows = [DemonstrationRow.model_validate_json(line) for line in lines]
    assert [row.split for row in rows] == ["train"] * 21 + ["heldout"] * 3
    model = session.get_one(ModelVersion, round_.policy_after_id)
    assert (model.role, model.name, model.base, model.parent_id) == ("sft", "sft-1", "models/base", base_id)
    assert (project.policy_id, project.reference_id) == (base_id, base_id)
    assert finish(session, store, round_).kind == "sample"
    assert (project.policy_id, project.reference_id, project.base_model_id) == (model.id, model.id, base_id)
    assert (round_.state, round_.policy_after_id) == ("done", model.id)  # nothing scores it yet

    second = start(session, store, project)
    specs = {}
    while second.state != "done":
        run = finish(session, store, second)
        specs[run.kind] = RUN_SPEC.validate_python(run.spec)
    for kind in ("dpo", "evaluate"):
        assert specs[kind].reference.adapter == model.adapter  # type: ignore[union-attr]

    third = start(session, store, project, "sft")
    kinds = []
    while third.state != "done":
        kinds.append(finish(session, store, third).kind)
    assert kinds == ["sft", "sample", "evaluate"]
    evaluated = RUN_SPEC.validate_python(last_run(session, third).spec)
    assert isinstance(evaluated, EvaluateSpec)
    assert evaluated.reward_models == (session.get_one(ModelVersion, second.reward_model_id).base,)
    assert evaluated.reference.adapter == model.adapter  # the reference as it was, not the model itself
    assert evaluated.policy.adapter != model.adapter


def test_fine_tuning_needs_twenty_approved_demonstrations(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    with_demonstrations(session, project, 19, heldout=5)
    factories.demonstration(session, factories.prompt(session, project), state="pending")
    words = "needs 20 approved demonstrations on train prompts; there are 19"
    with pytest.raises(InvalidInput, match=words):
        start(session, store, project, "sft")
    seen = service.preview(session, project, config("sft"))
    assert not seen.can_start
    assert (seen.counts, seen.waiting) == ({"train": 19, "heldout": 5, "demonstrations": 24}, 1)
    assert any(words in warning for warning in seen.warnings)
    with_demonstrations(session, project, 1)
    assert service.preview(session, project, config("sft")).can_start


def test_mixing_in_demonstrations_needs_some(session: Session, store: ArtifactStore, project: Project) -> None:
    with pytest.raises(InvalidInput, match="no approved demonstration"):
        start(session, store, project, "ppo", ptx=True)
    assert not service.preview(session, project, config("ppo", ptx=True)).can_start


def test_kto_learns_from_thumbs_too(session: Session, store: ArtifactStore, project: Project) -> None:
    """One row per response with the majority of its thumbs; none of held-out prompts, and none for other losses."""
    liked, even, disliked, unseen = (
        factories.completion(session, factories.prompt(session, project, split=split), text)
        for text, split in (("8", "train"), ("7", "train"), ("6", "train"), ("5", "heldout"))
    )
    for response, thumbs in ((liked, (1, 1, 0)), (even, (1, 0)), (disliked, (0,)), (unseen, (1,))):
        for thumb in thumbs:
            factories.thumb(session, response, liked=bool(thumb))
    taken_back = {"superseded_at": func.now(), "superseded_for": "edited"}
    factories.thumb(session, disliked, liked=True, **taken_back)
    assert service.preview(session, project, config("dpo", loss="kto")).thumbs == {"thumbs": 2, "up": 1, "down": 1}
    assert service.preview(session, project, config("dpo")).thumbs is None
    round_ = start(session, store, project, loss="kto")
    finish(session, store, round_)  # the reward model
    spec = RUN_SPEC.validate_python(last_run(session, round_).spec)
    assert isinstance(spec, DPOSpec)
    assert spec.thumbs is not None
    rows = read_thumbs(store.resolve(spec.thumbs))
    assert [(row.id, row.response, row.liked) for row in rows] == [(liked.id, "8", True), (disliked.id, "6", False)]
    assert views.page(session, store, round_).thumbs is not None
    thumb = session.scalars(select(Thumb).where(Thumb.completion_id == liked.id)).first()
    assert thumb is not None
    (used,) = labelers.uses(session, project, thumb.labeler_id).snapshots  # by whom a model has learned something
    assert (used.thumbs, used.round_id, used.snapshot_id) == (1, round_.id, round_.thumbs_snapshot_id)
    service.cancel(session, round_, factories.user(session, "operator"))
    for settings in ({"loss": "kto", "thumbs": False}, {"loss": "ipo"}):
        config_ = config("dpo", **settings)
        assert service.preview(session, project, config_).thumbs is None


def test_replay_mixes_earlier_comparisons_and_says_how_many(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    labelers = [factories.user(session).id]

    def label(count: int) -> None:
        for _ in range(count):
            decided(session, project, factories.prompt(session, project), labelers, preferences=(2,))

    def turn(**values: object) -> dict[str, object]:
        expected = service.preview(session, project, config(**values)).counts
        round_ = start(session, store, project, **values)
        counts = session.get_one(Snapshot, round_.snapshot_id).counts
        assert counts == expected
        while round_.state != "done":
            finish(session, store, round_)
        return counts

    assert turn()["earlier"] == {}  # 20 new
    label(30)
    cancelled = start(session, store, project)  # reads them, but no policy learns from them
    service.cancel(session, cancelled, factories.user(session, "operator"))
    third = turn(replay_share=0.25)
    assert (third["train"], third["new"], third["earlier"]) == (40, 30, {"1": 10})
    assert turn()["earlier"] == {"1": 20, "3": 30}
    label(40)
    fifth = turn(replay_share=0.2)
    assert (fifth["train"], fifth["new"]) == (50, 40)
    label(25)
    assert turn(replay_rounds=1)["earlier"] == {"5": 40}
    with pytest.raises(InvalidInput, match=r"there are 0 \(replay leaves earlier ones out\)"):
        start(session, store, project, replay_share=0.0)


def test_a_round_says_what_it_replayed(session: Session) -> None:
    assert views.reads("dpo", {"train": 420, "new": 300, "earlier": {"1": 80, "2": 40}}) == (
        "300 new + 120 earlier comparisons"
    )
    assert views.reads("ppo", {"train": 30, "new": 30, "earlier": {}}) == "30 comparisons"
    assert views.reads("sft", {"train": 21, "heldout": 3, "demonstrations": 24}) == "21 demonstrations"


def test_a_tie_of_people_is_no_winner_whatever_the_mean_strength(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    labelers = [factories.user(session).id, factories.user(session).id]
    decided(session, project, factories.prompt(session, project), labelers, preferences=(3, -1))
    seen = service.preview(session, project, config()).counts
    assert (seen["train"], seen["winners"], seen["ties"]) == (21, 20, 1)
    assert session.get_one(Snapshot, start(session, store, project).snapshot_id).counts == seen


def test_a_stage_that_cannot_be_made_fails_the_round_and_keeps_its_model(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    round_ = start(session, store, project)
    finish(session, store, round_)
    prompts = session.scalars(select(Prompt)).all()
    splits = {prompt.id: prompt.split for prompt in prompts}
    for prompt in prompts:
        prompt.split = "regression"
    finish(session, store, round_)
    assert round_.state == "failed"
    assert round_.error is not None
    assert "“sampling” could not begin. The project has no train or held-out prompts" in round_.error
    assert round_.policy_after_id is not None
    assert project.policy_id == round_.policy_before_id
    states = [stage.state for stage in views.stages_of(round_, queries.runs_of(session, round_.id))]
    assert states == ["succeeded", "succeeded", "succeeded", "failed", "waiting"]
    operator = factories.user(session, "operator")
    with pytest.raises(InvalidInput, match="no train or held-out prompts"), session.begin_nested():
        service.retry(session, store, round_, operator)
    for prompt in prompts:
        prompt.split = splits[prompt.id]
    service.retry(session, store, round_, operator)
    assert (round_.state, round_.error, last_run(session, round_).kind) == ("sampling", None, "sample")


def test_a_new_round_removes_what_the_failed_one_kept_for_going_on(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    failed = start(session, store, project)
    run = last_run(session, failed)
    with store.folder(f"{service.checkpoints_of(run.id)}/step-00000001"):
        pass
    service.run_started(session, run)
    service.run_failed(session, run, "broken")
    assert store.exists(service.checkpoints_of(run.id))
    start(session, store, project)
    assert not store.exists(service.checkpoints_of(run.id))


@pytest.mark.parametrize("named", [None, "served"])
def test_a_server_samples_where_one_is_set(
    session: Session, store: ArtifactStore, project: Project, named: str | None
) -> None:
    server = SamplingServer("http://gpu:8000/v1", named)
    first = RUN_SPEC.validate_python(service.begin_sampling(session, store, project, server).spec)
    session.execute(delete(Run))
    round_ = start(session, store, project, sample_previous=True)
    finish(session, store, round_)
    run = last_run(session, round_)
    service.run_started(session, run)
    service.run_finished(session, store, run, {}, "digest", server)
    second = RUN_SPEC.validate_python(last_run(session, round_).spec)
    assert isinstance(first, SampleSpec)
    assert isinstance(second, SampleSpec)
    assert {each.url for spec in (first, second) for each in spec.servers if each} == {"http://gpu:8000/v1"}
    names = [[each.model if each else None for each in spec.servers] for spec in (first, second)]
    # One name is one model's: the worker itself samples the other.
    assert names == ([["served"], ["served", None]] if named else [["base"], [f"run-{run.id}", "base"]])


def test_a_retry_samples_by_the_server_that_is_set_now(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """The advice in every error of a server: set its address, then retry."""
    wrong, right = (SamplingServer(f"http://{host}:8000/v1", "served") for host in ("typo", "gpu"))
    operator = factories.user(session, "operator")
    outside = service.begin_sampling(session, store, project, wrong)
    service.run_started(session, outside)
    service.run_failed(session, outside, "The server cannot be reached.")
    service.retry_run(session, outside, operator, right)
    assert [each["url"] for each in outside.spec["servers"]] == ["http://gpu:8000/v1"]
    service.cancel_run(session, outside, operator)
    service.retry_run(session, outside, operator)
    assert outside.spec["servers"] == []  # none is set any more: the worker samples

    round_ = start(session, store, project)
    finish(session, store, round_)
    policy = last_run(session, round_)
    service.run_started(session, policy)
    service.run_finished(session, store, policy, {}, "digest", wrong)
    sampling = last_run(session, round_)
    asked = sampling.spec
    service.run_started(session, sampling)
    service.run_failed(session, sampling, "The server cannot be reached.")
    service.retry(session, store, round_, operator, right)
    spec = RUN_SPEC.validate_python(sampling.spec)
    assert isinstance(spec, SampleSpec)
    assert [each and (each.url, each.model) for each in spec.servers] == [("http://gpu:8000/v1", "served")]
    assert sampling.spec | {"servers": asked["servers"]} == asked  # nothing else of it has changed
