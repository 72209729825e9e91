"""Every setting of a round reaches the worker's spec; a table makes the test fail if one is forgotten."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.rounds import run_seed
from app.domain.strengths import STRENGTHS
from app.errors import InvalidInput
from app.form_fields import reasons_of
from app.models import Comparison, Project, Round, Run, Snapshot
from app.rounds import service, views
from app.rounds.controls import form_fields
from app.rounds.forms import BUDGETS, RENAMED, SPECS, RoundConfig, policy_settings, settings_of
from app.rounds.service import store_samples
from app.specs import READ_BY, DPOSpec, Generation, Optimiser, PreferenceLoss, RewardSpec
from tests import factories
from tests.rounds.loop import config, decided, frozen, last_run, leave_files, make_project, new_samples

# Settings that are not called like the field of the spec they become, or that another one must be set for:
# name: (algorithm, value, kind of run, path in its spec, what stands there)
IN_SPECS: dict[str, tuple[str, Any, str, str, Any]] = {
    "reference": ("dpo", "previous", "dpo", "reference.adapter", "models/moved-on"),
    "label_smoothing": ("dpo", 0.2, "dpo", "label_smoothing", 0.2),
    "soft_labels": ("dpo", True, "dpo", "soft_labels", True),
    "length_average": ("dpo", True, "dpo", "length_average", True),
    "gamma": ("dpo", 0.9, "dpo", "gamma", 0.9),
    "desirable_weight": ("dpo", 1.3, "dpo", "desirable_weight", 1.3),
    "undesirable_weight": ("dpo", 1.4, "dpo", "undesirable_weight", 1.4),
    "loss": ("dpo", "ipo", "dpo", "loss", "ipo"),
    "rollout_samples": ("on_policy_dpo", 6, "on_policy_dpo", "samples_per_prompt", 6),
    "rollout_pairs": ("on_policy_dpo", 3, "on_policy_dpo", "pairs_per_prompt", 3),
    "strength": ("on_policy_dpo", "strong", "on_policy_dpo", "kl_budget", STRENGTHS["strong"].kl_budget),
    "kl_control": ("ppo", "fixed", "ppo", "kl_target", None),
    "lora": ("dpo", False, "dpo", "lora", None),
    "lora_rank": ("ppo", 4, "ppo", "lora", {"rank": 4, "alpha": 8}),
    "reward_lora": ("dpo", False, "reward", "lora", None),
    "max_length": ("ppo", 3000, "ppo", "max_length", 3000),
    "sample_previous": ("dpo", True, "sample", "heldout_models", 1),  # it answers all prompts, only the base model few
    "samples_per_prompt": ("dpo", 6, "sample", "generation.samples_per_prompt", 6),
    "max_new_tokens": ("ppo", 21, "ppo", "max_new_tokens", 21),
    "temperature": ("dpo", 0.6, "sample", "generation.temperature", 0.6),
    "seed": ("dpo", 5, "dpo", "seed", run_seed(5, "dpo", 1)),
}
# Those that decide which rows are read or asked about, each with a test of its own below.
ELSEWHERE = {
    *("train_limit", "heldout_limit", "replay_share", "replay_rounds", "ptx", "reward_aspects"),
    *("prompts", "pairs_per_prompt", "thumbs", "evaluation_share", "promotion", "ai_share"),
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    """A project that has moved on from its base model, with comparisons and demonstrations."""
    project = make_project(session, train=30, heldout=5)
    project.policy_id = factories.model(session, project, base="models/base", adapter="models/moved-on").id
    for _ in range(22):
        factories.demonstration(session, factories.prompt(session, project))
    return project


def runs(
    session: Session, store: ArtifactStore, project: Project, wanted: str, until: str | None = None, **values: Any
) -> dict[str, Run]:
    """Return the runs of a round by kind: of the whole round, or up to the first run of a kind."""
    operator = factories.user(session, "operator")
    round_ = service.start(session, store, project, operator, config(**{"algorithm": wanted} | values))
    frozen(session, store, round_)
    found = {}
    while round_.state not in ("done", "failed"):
        run = last_run(session, round_)
        found[run.kind] = run
        if run.kind == until:
            break
        service.run_started(session, run)
        leave_files(store, run)
        service.run_finished(session, store, run, {}, "digest")
        session.flush()
    assert round_.error is None
    return found


def at(spec: Any, path: str) -> Any:
    for key in path.split("."):
        spec = spec[int(key) if key.isdecimal() else key]
    return spec


def spec_of(
    session: Session, store: ArtifactStore, project: Project, wanted: str, kind: str, **values: Any
) -> dict[str, Any]:
    """Return the run of a kind in a round with these settings; the round is rolled back."""
    with session.begin_nested() as trial:
        spec = runs(session, store, project, wanted, kind, **values)[kind].spec
        trial.rollback()
    return spec


def test_each_setting_reaches_the_spec(session: Session, store: ArtifactStore, project: Project) -> None:
    found, wanted = {}, {}
    for name, (algorithm, value, kind, path, expected) in IN_SPECS.items():
        loss = {"loss": READ_BY[path][0]} if kind == "dpo" and path in READ_BY else {}
        found[name] = at(spec_of(session, store, project, algorithm, kind, **loss | {name: value}), path)
        wanted[name] = expected
        assert getattr(config(algorithm), name) != value, f"{name}: the test must change something"
    assert found == wanted


def other(info: FieldInfo) -> Any:
    """Return an allowed value of a setting that is not its default."""
    words = [word for word in get_args(info.annotation) if isinstance(word, str)]
    if words:
        return next(word for word in words if word != info.default)
    if info.annotation is bool:
        return not info.default
    candidates = (0.25, 2.5) if info.annotation is float or float in get_args(info.annotation) else (3, 7)
    bounds = {type(each): each for each in info.metadata}
    low = [getattr(bounds[kind], name) for kind, name in ((Ge, "ge"), (Gt, "gt")) if kind in bounds]
    return next(value for value in candidates if value != info.default and all(value >= each for each in low))


@pytest.mark.parametrize("algorithm", SPECS)
def test_every_other_setting_reaches_the_field_of_its_name(
    session: Session, store: ArtifactStore, project: Project, algorithm: str
) -> None:
    """All settings change at once. A setting has its field's name, with `reward_` in front for the reward model's."""
    changed = {
        name: other(info) for name, info, _ in settings_of(algorithm) if name not in IN_SPECS and name not in ELSEWHERE
    }
    if "rollout_size" in changed:
        changed["episodes"] = 99  # a rollout is no larger
    found = runs(session, store, project, algorithm, algorithm, **changed)
    for name, value in changed.items():
        is_reward = name.startswith("reward_")
        spec, field = found["reward" if is_reward else algorithm].spec, name.removeprefix("reward_")
        spec = spec["optimiser"] if field in Optimiser.model_fields else spec
        assert spec[field] == value, name


def test_what_the_loss_does_not_read_is_refused_by_name() -> None:
    with pytest.raises(ValidationError) as refused:
        config("dpo", loss="ipo", label_smoothing="0.1", gamma="0.7", soft_labels="false", length_average="on")
    message = "Loss ipo does not use it, only {}: leave it at its default"
    assert reasons_of(refused.value) == {
        "label_smoothing": message.format("dpo and robust"),
        "gamma": message.format("simpo"),
    }
    assert config("ppo", loss="ipo", label_smoothing="0.1").algorithm == "ppo"  # there neither is read


@pytest.mark.parametrize(("strength", "budget", "target"), [("gentle", 8, 4), ("balanced", 24, 12), ("strong", 40, 20)])
def test_the_strength_decides_how_far_a_round_goes_unless_that_is_given(
    strength: str, budget: float, target: float
) -> None:
    assert policy_settings(config("on_policy_dpo", strength=strength))["kl_budget"] == budget
    assert policy_settings(config("ppo", strength=strength))["kl_target"] == target
    assert policy_settings(config("best_of_n", strength=strength, kl_budget="2.5"))["kl_budget"] == 2.5
    with pytest.raises(ValidationError, match="gentle"):
        config("on_policy_dpo", strength="reckless")


@pytest.mark.parametrize("algorithm", SPECS)
def test_what_saves_memory_is_for_every_algorithm(
    session: Session, store: ArtifactStore, project: Project, algorithm: str
) -> None:
    saving = {"lora": False, "gradient_checkpointing": True, "precision": "float32"}
    spec = spec_of(session, store, project, algorithm, algorithm, **saving)
    said = spec["lora"], spec["optimiser"]["gradient_checkpointing"], spec["optimiser"]["precision"]
    assert said == (None, True, "float32")


def test_no_stage_cuts_what_another_reads(session: Session, store: ArtifactStore, project: Project) -> None:
    for algorithm in ("sft", "dpo", "ppo"):
        found = runs(session, store, project, algorithm, max_length=3000, max_new_tokens=8)
        assert {kind: run.spec["max_length"] for kind, run in found.items()} == dict.fromkeys(found, 3000)
    short = runs(session, store, project, "dpo", max_length=16, max_new_tokens=8)
    assert {run.spec["max_length"] for run in short.values()} == {8 + 512}


def test_the_number_of_prompts_and_pairs(session: Session, store: ArtifactStore, project: Project) -> None:
    found = runs(session, store, project, "dpo", prompts=7, pairs_per_prompt=2, samples_per_prompt=4)
    rows = store.resolve(found["sample"].spec["prompts"]).read_text().splitlines()
    assert len(rows) == 7
    train = next(row for row in map(json.loads, rows) if row["slices"]["split"] == "train")
    before = session.scalar(select(func.count()).select_from(Comparison)) or 0
    store_samples(session, found["sample"], new_samples(train["id"], ["a", "b", "c", "d"]))
    assert (session.scalar(select(func.count()).select_from(Comparison)) or 0) - before == 2


def test_limits_are_of_each_split(session: Session, store: ArtifactStore, project: Project) -> None:
    runs(session, store, project, "dpo", train_limit=25, heldout_limit=2)
    snapshot = session.scalars(select(Snapshot)).one()
    assert (snapshot.counts["train"], snapshot.counts["heldout"]) == (25, 2)


def test_ppo_mixes_in_the_approved_demonstrations(session: Session, store: ArtifactStore, project: Project) -> None:
    factories.demonstration(session, factories.prompt(session, project), state="pending")
    assert runs(session, store, project, "ppo")["ppo"].spec["ptx"] is None
    location = runs(session, store, project, "ppo", ptx=True)["ppo"].spec["ptx"]
    snapshot = session.scalars(select(Snapshot).where(Snapshot.location == location)).one()
    assert snapshot.counts == {"train": 22, "heldout": 0, "demonstrations": 22}
    first, second = session.scalars(select(Round).order_by(Round.number))
    assert [views.page(session, store, round_).mixed for round_ in (first, second)] == [None, snapshot]


def test_aspects_that_enough_comparisons_decide_get_heads(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """20 decide factuality, one of which is a tie overall; 19 decide style, without held-out ones and ties in it."""
    labelers = [factories.user(session).id]

    def rate(aspects: dict[str, int], preference: int = 1, split: str = "train") -> None:
        prompt = factories.prompt(session, project, split=split)
        decided(session, project, prompt, labelers, preferences=(preference,), aspects=aspects)

    with pytest.raises(InvalidInput, match="No aspect is decided in 20"), session.begin_nested():
        runs(session, store, project, "dpo", reward_aspects=True)
    for _ in range(19):
        rate({"factuality": 1, "style": -1})
    rate({"factuality": -1, "style": 0}, preference=0)
    for _ in range(5):
        rate({"style": 1}, split="heldout")
    found = runs(session, store, project, "dpo", reward_aspects=True)
    assert found["reward"].spec["aspects"] == ["factuality"]
    assert runs(session, store, project, "dpo")["reward"].spec["aspects"] == []


@pytest.mark.parametrize("algorithm", SPECS)
def test_defaults_are_those_of_the_specs(
    session: Session, store: ArtifactStore, project: Project, algorithm: str
) -> None:
    """A round without settings trains with the recipes' defaults, except for required fields, seed and strength."""
    new_tokens = SPECS[algorithm].model_fields.get("max_new_tokens")
    found = runs(session, store, project, algorithm, max_new_tokens=new_tokens.default if new_tokens else 64)
    for kind, model in ((algorithm, SPECS[algorithm]), ("reward", RewardSpec)):
        if kind not in found:
            continue
        for name, field in model.model_fields.items():
            if not field.is_required() and name not in ("max_length", "kind", "seed", "snapshot", *BUDGETS):
                default = field.get_default(call_default_factory=True, validated_data={"loss": "dpo"})
                default = default.model_dump(mode="json") if hasattr(default, "model_dump") else default
                wanted = list(default) if isinstance(default, tuple) else default
                assert found[kind].spec[name] == wanted, f"{kind}.{name}"


def test_no_two_runs_of_a_project_share_a_seed(session: Session, store: ArtifactStore, project: Project) -> None:
    found = [run for wanted in ("ppo", "ppo", "dpo") for run in runs(session, store, project, wanted).values()]
    found.append(service.begin_sampling(session, store, project))
    of_rounds = [kind for wanted in ("ppo", "ppo", "dpo") for kind in ("reward", wanted, "sample", "evaluate")]
    assert [run.kind for run in found] == [*of_rounds, "sample"]
    assert len({run.spec["seed"] for run in found}) == len(found)


@pytest.mark.parametrize(("algorithm", "rate"), [("sft", 2e-5), ("dpo", 6e-5), ("ppo", 6e-5), ("on_policy_dpo", 2e-5)])
def test_full_weights_learn_at_a_tenth_of_the_rate(algorithm: str, rate: float) -> None:
    def rates(**values: Any) -> list[float]:
        chosen = config(algorithm, **values).model_dump()
        names = ("learning_rate", "reward_learning_rate", "human_learning_rate")
        return [chosen[name] for name in names if name in chosen]

    also = [] if algorithm == "sft" else [1e-4] if algorithm != "on_policy_dpo" else [1e-4, 6e-5]
    assert rates(lora="false", reward_lora=False) == [rate, *also]
    assert rates(lora=False, learning_rate="")[:2] == [rate, *([1e-3] if also else [])]
    assert rates(lora=False, learning_rate="0.5")[0] == 0.5


@pytest.mark.parametrize("loss", get_args(PreferenceLoss))
def test_what_is_not_given_is_that_of_the_loss(
    session: Session, store: ArtifactStore, project: Project, loss: PreferenceLoss
) -> None:
    """This holds for rounds and specs, which are stored complete. Given values stay."""
    nothing = {"policy": {"base": "b"}, "reference": {"base": "b"}, "snapshot": "s"}
    own = DPOSpec.model_validate(nothing | {"loss": loss})
    found = spec_of(session, store, project, "dpo", "dpo", loss=loss, beta="", learning_rate="", epochs="")
    assert (found["beta"], found["optimiser"]) == (own.beta, own.optimiser.model_dump())
    assert own.beta == (2.0 if loss == "simpo" else 0.1)
    given = spec_of(session, store, project, "dpo", "dpo", loss=loss, beta="0.3", learning_rate="0.002")
    assert (given["beta"], given["optimiser"]["learning_rate"]) == (0.3, 0.002)
    assert DPOSpec.model_validate(nothing | {"loss": loss, "beta": 0.3}).beta == 0.3


@pytest.mark.parametrize("algorithm", SPECS)
def test_the_form_has_every_setting_of_its_algorithm(algorithm: str) -> None:
    values = RoundConfig.defaults(algorithm, Generation()).model_dump()
    shown = {each.name for group in form_fields(algorithm, values, {}).values() for each in group}  # type: ignore[arg-type]
    assert shown == {name for name, *_ in settings_of(algorithm)} - {"strength"}
    fields = {RENAMED.get(name, name) for name in SPECS[algorithm].model_fields}
    filled_in = {"kind", "policy", "reward_models", "snapshot", "demonstrations", "thumbs", "optimiser"}
    assert fields - filled_in <= shown
    assert set(Optimiser.model_fields) <= shown
