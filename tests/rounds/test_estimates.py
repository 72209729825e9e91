"""The estimate of a round, from the project, the store and earlier runs."""

import json
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.costs import FROZEN
from app.models import Project
from app.rounds import service
from app.rounds.estimates import data_of, plan_of, rates_of, shape_of
from tests import factories
from tests.rounds.loop import config, make_project
from tests.trainer.conftest import build_model


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


def test_a_models_size_is_read_from_its_folder(store: ArtifactStore, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    build_model(tmp_path / "model")
    shape = shape_of(store, str(tmp_path / "model"))
    assert shape is not None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    known = model.config
    assert shape[1:] == (known.num_hidden_layers, known.hidden_size, known.intermediate_size, known.vocab_size)
    assert shape_of(store, "someone/on-a-hub") is None
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "odd"}))
    assert shape_of(store, str(tmp_path / "model")) is None


def test_lengths_and_counts_are_the_projects(session: Session, project: Project) -> None:
    counts = {"train": 20}
    found = data_of(session, project, config(max_new_tokens=64), counts)
    # 20 train and 2 held-out prompts; texts of 15 and 26 characters, four a token.
    assert (found.pairs, found.train_prompts, found.evaluation_prompts, found.queue_prompts) == (20, 20, 2, 22)
    assert found.response_tokens == pytest.approx((15 + 26) / 2 / 4)
    assert 5 < found.prompt_tokens < 25  # [{"role": "user", "content": "Question 12?"}]
    for _ in range(200):
        factories.completion(session, factories.prompt(session, project), n_tokens=90)
    longer = data_of(session, project, config(max_new_tokens=64), counts)
    assert longer.response_tokens == 64  # at most what is sampled


def test_settings_that_decide_how_much_work_it_is() -> None:
    plan = plan_of(config("on_policy_dpo", turns=3, rollout_samples=8, rollout_pairs=2, sample_previous=True))
    assert (plan.algorithm, plan.turns, plan.answers, plan.pairs, plan.human_epochs) == ("on_policy_dpo", 3, 8, 2, 2)
    assert (plan.queue_prompts, plan.queue_samples) == (100, 4 * 2.3)  # the first policy answers the held-out prompts
    assert plan_of(config("rloo", episodes=64)).episodes == 64


def test_rates_are_those_of_the_newest_run_of_the_same_model(session: Session, project: Project) -> None:
    def ran(of: Project, tokens: int, base: str = "models/base", state: str = "succeeded", number: int = 1) -> None:
        round_ = factories.round_(session, of, number=number)
        factories.run(
            session,
            of,
            "dpo",
            round_id=round_.id,
            state=state,
            spec={"policy": {"base": base}},
            result={"tokens": tokens, "seconds": 10.0, "peak_memory": 5_000},
        )

    other = factories.project(session)
    ran(project, 1000, number=1)
    ran(project, 3000, number=2)
    ran(project, 9000, base="models/larger", number=3)
    ran(project, 8000, state="failed", number=4)
    ran(other, 5000)
    found = rates_of(session, project.id, "models/base")
    assert found == {"dpo": (300, "as round 2: 300 tokens a second", 5_000)}
    assert rates_of(session, other.id, "models/base")["dpo"].tokens_per_second == 500
    elsewhere = rates_of(session, factories.project(session).id, "models/base")["dpo"]
    assert elsewhere == (500, "as an earlier run: 500 tokens a second", 5_000)
    assert rates_of(session, project.id, "models/new") == {}


def test_a_round_is_frozen_as_fast_as_the_newest_one_that_took_long_enough_to_tell(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    counts = service.preview(session, project, config()).counts
    assert (counts["train"], counts["heldout"]) == (20, 2)

    def part() -> tuple[float, str]:
        found = service.estimate(session, store, project, config("dpo"), counts)
        assert found is not None
        assert found.seconds == sum(part.seconds for part in found.parts)
        return found.parts[0][1:]

    assert part() == (22 / FROZEN, "default rate of one CPU core")
    for number, (seconds, state) in enumerate([(2.0, "succeeded"), (0.1, "succeeded"), (4.0, "failed")], 1):
        round_ = factories.round_(session, project, number=number)
        result = {"read": 1000, "seconds": seconds}
        factories.run(session, project, "freeze", round_id=round_.id, state=state, result=result)
    assert part() == (22 / 500, "as round 1: 500 rows a second")


def test_an_estimate_stands_part_by_part(session: Session, store: ArtifactStore, project: Project) -> None:
    counts = service.preview(session, project, config()).counts
    found = service.estimate(session, store, project, config("on_policy_dpo"), counts)
    assert found is not None
    assert [part.kind for part in found.parts] == ["freeze", "reward", "on_policy_dpo", "sample", "evaluate"]
    assert found.memory is None  # the model is not on this machine
    more = service.estimate(session, store, project, config("on_policy_dpo", turns=2), counts)
    assert more is not None
    assert more.seconds > found.seconds
    project.policy_id = None
    assert service.estimate(session, store, project, config(), counts) is None


def test_a_reward_model_of_full_weights_is_one_that_needs_much_memory(
    session: Session, store: ArtifactStore, tmp_path: Path
) -> None:
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"))
    shape = shape_of(store, str(tmp_path / "model"))
    assert shape is not None
    adapters, full = (
        service.estimate(
            session, store, project, config("dpo", reward_trunk="trained", reward_lora=lora), {"train": 20}
        )
        for lora in (True, False)
    )
    assert adapters is not None
    assert full is not None
    assert adapters.memory is not None
    assert full.memory is not None
    assert full.memory - adapters.memory == 4 * 3 * shape.parameters  # gradients and both moments, in fp32
    assert plan_of(config(reward_trunk="trained", reward_lora=False)).reward_members == 1  # it has no other members
    assert plan_of(config()).reward_members == 1  # one pass over a frozen trunk serves all
