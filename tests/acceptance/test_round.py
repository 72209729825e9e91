"""The loop with real parts: judgments go in; a reward model, a better policy and new comparisons come out."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.models import Comparison, Completion, Metric, ModelVersion, Project, Round, Run, Snapshot
from app.rounds import outcomes, queries, result_queries, service
from app.settings import Settings
from tests import factories
from tests.rounds.loop import config, decided, jobs, make_project
from tests.trainer.conftest import build_model
from trainer.service.worker import work_until_empty

pytestmark = pytest.mark.long


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_root)


@pytest.fixture
def project(session: Session, tmp_path: Path) -> Project:
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"), train=20, heldout=3)
    factories.prompt(session, project, split="regression", domain="safety")
    labelers = [factories.user(session).id for _ in range(2)]
    decided(session, project, factories.prompt(session, project), labelers, preferences=(0, 0))
    session.commit()
    return project


def metric(session: Session, round_: Round, kind: str, name: str, slice: str = "") -> list[float]:
    query = select(Metric.value).join(Run, Run.id == Metric.run_id)
    query = query.where(Run.round_id == round_.id, Run.kind == kind, Metric.name == name, Metric.slice == slice)
    return list(session.scalars(query.order_by(Metric.step)))


def sampled(session: Session, round_: Round) -> set[tuple[int | None, int | None]]:
    """Return (model, sample index) of the samples that the round's sampling run stored."""
    query = select(Completion.model_version_id, Completion.sample_index).join(Run, Run.id == Completion.run_id)
    rows = session.execute(query.where(Run.round_id == round_.id, Run.kind == "sample"))
    return {(model, index) for model, index in rows}


def load_policy(model: ModelVersion, store: ArtifactStore) -> torch.nn.Module:
    """Load the policy as other programs would."""
    assert model.adapter is not None
    return AutoModelForCausalLM.from_pretrained(store.resolve(model.adapter))


@pytest.mark.parametrize("algorithm", ["on_policy_dpo", "dpo", "ppo"])
def test_a_round_from_judgments_to_new_comparisons(
    session: Session, settings: Settings, store: ArtifactStore, project: Project, algorithm: str
) -> None:
    # The base model answers first, as on a first run.
    service.begin_sampling(session, store, project)
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    base_id = project.policy_id
    first = list(session.scalars(select(Comparison).where(Comparison.state == "open")))
    assert {comparison.purpose for comparison in first} == {"train", "heldout"}

    operator = factories.user(session, "operator")
    few = {"episodes": 16, "rollout_samples": 4 if algorithm == "on_policy_dpo" else 1, "min_margin": 0}
    rates = {"learning_rate": 2e-3, "reward_trunk": "trained", "reward_learning_rate": 2e-3, "reward_epochs": 4}
    chosen = config(algorithm, **rates, **few, epochs=2, prompts=12, kl_budget=1000)
    round_ = service.start(session, store, project, operator, chosen)
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()

    runs = queries.runs_of(session, round_.id)
    assert round_.state == "done", [run.error for run in runs]
    assert [(run.kind, run.state, run.attempts) for run in runs] == [
        (kind, "succeeded", 1) for kind in ("freeze", "reward", algorithm, "sample", "evaluate")
    ]
    assert jobs(session) == []

    # The reward model learned what two labelers said twenty times, and is measured on the held-out prompts.
    assert metric(session, round_, "reward", "eval_accuracy") != []
    assert metric(session, round_, "reward", "loss")[-1] < metric(session, round_, "reward", "loss")[0]
    assert metric(session, round_, "reward", "eval_accuracy", "domain=factual") != []
    reward_model = session.get_one(ModelVersion, round_.reward_model_id)
    folder = store.resolve(reward_model.base)
    assert digest_folder(folder) == reward_model.digest
    backbone = AutoModelForSequenceClassification.from_pretrained(reward_model.card["base"], num_labels=1)
    classifier = PeftModel.from_pretrained(backbone, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "short and right"}]
    tokens = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    assert classifier(**tokens).logits.shape == (1, 1)

    # The policy changed and was adopted: with so few prompts, it cannot be found worse.
    policy = session.get_one(ModelVersion, round_.policy_after_id)
    assert project.policy_id == policy.id
    assert policy.parent_id == base_id
    assert policy.digest == digest_folder(store.resolve(policy.adapter or ""))
    assert policy.card["snapshot"] == session.get_one(Snapshot, round_.snapshot_id).digest
    loaded = load_policy(policy, store)
    base = AutoModelForCausalLM.from_pretrained(policy.base)
    probe = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert not torch.allclose(loaded(probe).logits, base(probe).logits, atol=1e-3)
    (kl,) = metric(session, round_, "evaluate", outcomes.KL)
    assert 0 < kl < math.inf  # it would be 0 if measured to itself
    for name in ("eval_before/scores", "eval_difference/scores", "eval_base/best_of_4", "eval_base/gain"):
        assert metric(session, round_, "evaluate", name) != []
    assert metric(session, round_, "evaluate", outcomes.REWARD, "split=regression") != []
    if algorithm == "ppo":
        assert metric(session, round_, "ppo", "objective/kl") != []

    # Its samples are in the queue, some against the previous policy; there are no questions about regression prompts.
    opened = result_queries.opened_comparisons(session, [round_.id])
    assert {purpose for _, purpose in opened} == {"train", "heldout", "human_eval"}
    asked = select(func.count()).select_from(Comparison).where(Comparison.round_id == round_.id)
    for comparison in session.scalars(select(Comparison).where(Comparison.round_id == round_.id)):
        a, b = (session.get_one(Completion, side) for side in (comparison.completion_a_id, comparison.completion_b_id))
        assert a.text.strip() != b.text.strip()
        versions = {a.model_version_id, b.model_version_id}
        assert versions == ({base_id, policy.id} if comparison.purpose == "human_eval" else {policy.id})
    assert (session.scalar(asked) or 0) >= 20
    regression = select(Comparison.id).join(factories.Prompt, factories.Prompt.id == Comparison.prompt_id)
    assert session.scalars(regression.where(factories.Prompt.split == "regression")).all() == []


def test_two_rounds_follow_each_other(
    session: Session, settings: Settings, store: ArtifactStore, project: Project
) -> None:
    operator = factories.user(session, "operator")
    chosen = config(learning_rate=1e-3, epochs=1, prompts=4, sample_previous=True)
    numbers = []
    for _ in range(2):
        service.start(session, store, project, operator, chosen)
        session.commit()
        work_until_empty(settings, settings.database_url or "")
        session.expire_all()
        numbers.append(session.get_one(ModelVersion, project.policy_id).name)
    assert numbers == ["policy-1", "policy-2"]
    first, second = outcomes.progress(session, project).rows
    assert second.round.policy_before_id == first.round.policy_after_id
    for row in (first, second):
        after, before = row.round.policy_after_id, row.round.policy_before_id
        expected = {(after, i) for i in range(4)} | {(before, i) for i in range(4, 8)}
        if row is second:  # here the first policy is another model, and answers held-out prompts
            expected |= {(first.round.policy_before_id, i) for i in range(8, 12)}
        assert sampled(session, row.round) == expected
    assert None not in (first.accuracy, first.kl, second.accuracy, second.kl)
    # The base model is the reference of both rounds, and has answered held-out prompts four times in each.
    assert first.yardstick is not None
    assert second.yardstick is not None
    assert (first.yardstick.n, first.yardstick.points[0]) == (4, (1, 0.0, 0.0))


def test_a_missing_model_fails_the_round_by_name_and_a_retry_goes_on(
    session: Session, settings: Settings, store: ArtifactStore, project: Project, tmp_path: Path
) -> None:
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    operator = factories.user(session, "operator")
    round_ = service.start(session, store, project, operator, config(prompts=2))
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()
    assert round_.state == "failed"
    assert f"The model {tmp_path / 'model'} does not exist" in (round_.error or "")

    (tmp_path / "elsewhere").rename(tmp_path / "model")
    service.retry(session, store, round_, operator)
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()
    assert (round_.state, round_.error) == ("done", None)


def test_a_full_disk_fails_the_round_by_name_and_keeps_the_old_policy(
    session: Session, settings: Settings, store: ArtifactStore, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_id = project.policy_id
    operator = factories.user(session, "operator")
    round_ = service.start(session, store, project, operator, config(prompts=2))
    session.commit()

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    # The error of the operating system when the first model is written.
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.serialize_file", full)
        patched.setattr("transformers.modeling_utils.safe_save_file", full)
        work_until_empty(settings, settings.database_url or "")
    session.expire_all()
    assert round_.state == "failed"
    assert "no room left on the disk" in (round_.error or "")
    assert project.policy_id == base_id
    assert not (store.root / "models").exists() or not list((store.root / "models").iterdir())
    assert not list((store.root / ".staging").iterdir())

    service.retry(session, store, round_, operator)
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()
    assert round_.state == "done", round_.error
