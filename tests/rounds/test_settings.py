"""Every setting of a round reaches what the worker reads: a table, so that a forgotten one fails."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.rounds import run_seed
from app.errors import InvalidInput
from app.models import Comparison, Project, Round, Run, Snapshot
from app.rounds import service, views
from app.rounds.controls import form_fields
from app.rounds.forms import RoundConfig
from app.rounds.service import store_samples
from app.specs import READ_BY, DPOSpec, Generation, PPOSpec, PreferenceLoss, RewardSpec, SFTSpec
from app.typed import reasons_of
from tests import factories
from tests.rounds.loop import config, decided, last_run, make_project, new_samples

# name: (algorithm, value, kind of run, path in its spec, what stands there)
IN_SPECS: dict[str, tuple[str, Any, str, str, Any]] = {
    "algorithm": ("ppo", "ppo", "ppo", "kind", "ppo"),
    "learning_rate": ("dpo", 0.003, "dpo", "optimiser.learning_rate", 0.003),
    "epochs": ("sft", 7, "sft", "optimiser.epochs", 7),
    "batch_size": ("dpo", 5, "dpo", "optimiser.batch_size", 5),
    "microbatch_size": ("dpo", 3, "reward", "optimiser.microbatch_size", 3),
    "warmup_ratio": ("sft", 0.3, "sft", "optimiser.warmup_ratio", 0.3),
    "weight_decay": ("dpo", 0.02, "dpo", "optimiser.weight_decay", 0.02),
    "gradient_checkpointing": ("dpo", True, "reward", "optimiser.gradient_checkpointing", True),
    "precision": ("ppo", "bfloat16", "ppo", "optimiser.precision", "bfloat16"),
    "reference": ("dpo", "previous", "dpo", "reference.adapter", "models/run-0"),
    "loss": ("dpo", "ipo", "dpo", "loss", "ipo"),
    "beta": ("dpo", 0.7, "dpo", "beta", 0.7),
    "label_smoothing": ("dpo", 0.2, "dpo", "label_smoothing", 0.2),
    "soft_labels": ("dpo", True, "dpo", "soft_labels", True),
    "length_average": ("dpo", True, "dpo", "length_average", True),
    "simpo_gamma": ("dpo", 0.9, "dpo", "gamma", 0.9),
    "desirable_weight": ("dpo", 1.3, "dpo", "desirable_weight", 1.3),
    "undesirable_weight": ("dpo", 1.4, "dpo", "undesirable_weight", 1.4),
    "nll_weight": ("dpo", 0.6, "dpo", "nll_weight", 0.6),
    "episodes": ("ppo", 77, "ppo", "episodes", 77),
    "rollout_size": ("ppo", 11, "ppo", "rollout_size", 11),
    "rollout_samples": ("ppo", 4, "ppo", "samples_per_prompt", 4),
    "kl_coef": ("ppo", 0.33, "ppo", "kl_coef", 0.33),
    "kl_control": ("ppo", "fixed", "ppo", "kl_target", None),
    "kl_target": ("ppo", 2.5, "ppo", "kl_target", 2.5),
    "kl_horizon": ("ppo", 55, "ppo", "kl_horizon", 55),
    "kl_stop": ("ppo", 9.0, "ppo", "kl_stop", 9.0),
    "approxkl_stop": ("ppo", 0.4, "ppo", "approxkl_stop", 0.4),
    "clip_range": ("ppo", 0.15, "ppo", "clip_range", 0.15),
    "gamma": ("ppo", 0.9, "ppo", "gamma", 0.9),
    "gae_lambda": ("ppo", 0.8, "ppo", "gae_lambda", 0.8),
    "vf_coef": ("ppo", 0.3, "ppo", "vf_coef", 0.3),
    "value_clip_range": ("ppo", 0.25, "ppo", "value_clip_range", 0.25),
    "evaluate_every": ("ppo", 5, "ppo", "evaluate_every", 5),
    "critic": ("ppo", "reward", "ppo", "critic", "reward"),
    "ensemble_score": ("ppo", "min", "ppo", "ensemble_score", "min"),
    "variance_weight": ("ppo", 0.8, "ppo", "variance_weight", 0.8),
    "normalise_scores": ("ppo", True, "ppo", "normalise_scores", True),
    "clip_score": ("ppo", 4.0, "ppo", "clip_score", 4.0),
    "whiten_rewards": ("ppo", True, "ppo", "whiten_rewards", True),
    "missing_eos": ("ppo", "replace", "ppo", "missing_eos", "replace"),
    "missing_eos_penalty": ("ppo", 2.0, "ppo", "missing_eos_penalty", 2.0),
    "ptx_coef": ("ppo", 0.35, "ppo", "ptx_coef", 0.35),
    "packing": ("sft", False, "sft", "packing", False),
    "max_length": ("ppo", 3000, "ppo", "max_length", 3000),
    "lora": ("dpo", False, "dpo", "lora", None),
    "lora_rank": ("ppo", 4, "ppo", "lora", {"rank": 4, "alpha": 8}),
    "reward_learning_rate": ("dpo", 0.004, "reward", "optimiser.learning_rate", 0.004),
    "reward_epochs": ("dpo", 9, "reward", "optimiser.epochs", 9),
    "reward_ensemble": ("dpo", 3, "reward", "ensemble", 3),
    "reward_ties": ("dpo", "davidson", "reward", "ties", "davidson"),
    "reward_margin": ("dpo", "large", "reward", "margin", "large"),
    "reward_soft_labels": ("dpo", False, "reward", "soft_labels", False),
    "reward_label_smoothing": ("dpo", 0.1, "reward", "label_smoothing", 0.1),
    "reward_centering": ("dpo", 0.5, "reward", "centering", 0.5),
    "reward_lora": ("dpo", False, "reward", "lora", None),
    "sample_previous": ("dpo", True, "sample", "models.1.adapter", "models/run-0"),
    "samples_per_prompt": ("dpo", 6, "sample", "generation.samples_per_prompt", 6),
    "max_new_tokens": ("ppo", 21, "ppo", "max_new_tokens", 21),
    "temperature": ("dpo", 0.6, "sample", "generation.temperature", 0.6),
    "seed": ("dpo", 5, "dpo", "seed", run_seed(5, "dpo", 1)),
}
# Those that decide which rows are read or asked about, each with a test of its own below.
ELSEWHERE = {
    *("train_limit", "heldout_limit", "replay_share", "replay_rounds", "ptx", "reward_aspects"),
    *("prompts", "pairs_per_prompt"),
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    """A project that has moved on from its base model, with comparisons and demonstrations."""
    project = make_project(session, train=30, heldout=5)
    project.policy_id = factories.model(session, project, base="models/base", adapter="models/run-0").id
    for _ in range(22):
        factories.demonstration(session, factories.prompt(session, project))
    return project


def runs(
    session: Session, store: ArtifactStore, project: Project, wanted: str, until: str | None = None, **values: Any
) -> dict[str, Run]:
    """The runs of a round of the wanted algorithm, by kind: of a whole one, or until there is one of a kind."""
    operator = factories.user(session, "operator")
    round_ = service.start(session, store, project, operator, config(**{"algorithm": wanted} | values))
    found = {}
    while round_.state not in ("done", "failed"):
        run = last_run(session, round_)
        found[run.kind] = run
        if run.kind == until:
            break
        service.run_started(session, run)
        service.run_finished(session, store, run, {}, "digest")
        session.flush()
    assert round_.error is None
    return found


def at(spec: Any, path: str) -> Any:
    for key in path.split("."):
        spec = spec[int(key) if key.isdecimal() else key]
    return spec


def test_no_setting_is_forgotten() -> None:
    assert {*IN_SPECS, *ELSEWHERE} == set(RoundConfig.model_fields)


def spec_of(
    session: Session, store: ArtifactStore, project: Project, wanted: str, kind: str, **values: Any
) -> dict[str, Any]:
    """What a round with these settings gives its run of a kind; nothing of the round stays."""
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
        default = RoundConfig.model_validate({"algorithm": algorithm})
        assert name == "algorithm" or getattr(default, name) != value, f"{name}: the test must change something"
    assert found == wanted


def test_what_the_loss_does_not_read_is_refused_by_name() -> None:
    with pytest.raises(ValidationError) as refused:
        config("dpo", loss="ipo", label_smoothing="0.1", simpo_gamma="0.7", soft_labels="false", length_average="on")
    message = "Loss ipo does not use it, only {}: leave it at its default"
    assert reasons_of(refused.value) == {
        "label_smoothing": message.format("dpo and robust"),
        "simpo_gamma": message.format("simpo"),
    }
    assert config("ppo", loss="ipo", label_smoothing="0.1").algorithm == "ppo"  # there neither is read


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "ppo"])
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
    """20 decide factuality, one of them a tie in all; 19 style, for neither held-out ones nor ties in it count."""
    labelers = [factories.user(session).id]

    def rate(aspects: dict[str, int], preference: int = 1, split: str = "train") -> None:
        prompt = factories.prompt(session, project, split=split)
        decided(session, project, prompt, labelers, preferences=(preference,), aspects=aspects)

    with pytest.raises(InvalidInput, match="No aspect is decided by 20"), session.begin_nested():
        runs(session, store, project, "dpo", reward_aspects=True)
    for _ in range(19):
        rate({"factuality": 1, "style": -1})
    rate({"factuality": -1, "style": 0}, preference=0)
    for _ in range(5):
        rate({"style": 1}, split="heldout")
    found = runs(session, store, project, "dpo", reward_aspects=True)
    assert found["reward"].spec["aspects"] == ["factuality"]
    assert runs(session, store, project, "dpo")["reward"].spec["aspects"] == []


def test_defaults_are_those_of_the_specs(session: Session, store: ArtifactStore, project: Project) -> None:
    """A round without settings trains as the recipes do by themselves, but for what it must name and its own seed."""
    for algorithm, spec in (("sft", SFTSpec), ("dpo", DPOSpec), ("ppo", PPOSpec)):
        found = runs(session, store, project, algorithm, temperature=1.0, max_new_tokens=48)
        for kind, model in ((algorithm, spec), ("reward", RewardSpec)):
            if kind not in found:
                continue
            for name, field in model.model_fields.items():
                if not field.is_required() and name not in ("max_length", "kind", "seed"):
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


@pytest.mark.parametrize(("algorithm", "rate"), [("sft", 2e-5), ("dpo", 6e-5), ("ppo", 6e-5)])
def test_full_weights_learn_at_a_tenth_of_the_rate(algorithm: str, rate: float) -> None:
    full = config(algorithm, lora="false", reward_lora=False)
    assert (full.learning_rate, full.reward_learning_rate) == (rate, 3e-5)
    only_policy = config(algorithm, lora=False, learning_rate="")
    assert (only_policy.learning_rate, only_policy.reward_learning_rate) == (rate, 3e-4)
    assert config(algorithm, lora=False, learning_rate="0.5").learning_rate == 0.5


@pytest.mark.parametrize("loss", get_args(PreferenceLoss))
def test_what_is_not_given_is_that_of_the_loss(
    session: Session, store: ArtifactStore, project: Project, loss: PreferenceLoss
) -> None:
    """In a round as in a spec, which is stored complete; a value that is given stays."""
    nothing = {"policy": {"base": "b"}, "reference": {"base": "b"}, "snapshot": "s"}
    own = DPOSpec.model_validate(nothing | {"loss": loss})
    found = spec_of(session, store, project, "dpo", "dpo", loss=loss, beta="", learning_rate="", epochs="")
    assert (found["beta"], found["optimiser"]) == (own.beta, own.optimiser.model_dump())
    assert own.beta == (2.0 if loss == "simpo" else 0.1)
    given = spec_of(session, store, project, "dpo", "dpo", loss=loss, beta="0.3", learning_rate="0.002")
    assert (given["beta"], given["optimiser"]["learning_rate"]) == (0.3, 0.002)
    assert DPOSpec.model_validate(nothing | {"loss": loss, "beta": 0.3}).beta == 0.3


def test_the_form_has_every_setting_that_counts_for_its_algorithm() -> None:
    for algorithm in ("sft", "dpo", "ppo"):
        values = RoundConfig.defaults(algorithm, Generation()).model_dump()
        shown = {each.name for group in form_fields(algorithm, values, {}).values() for each in group}
        counted = {name for name, row in IN_SPECS.items() if row[0] == algorithm} | {"seed", "learning_rate", "lora"}
        assert counted - {"algorithm"} <= shown
    everywhere = {
        each.name
        for algorithm in ("sft", "dpo", "ppo")
        for group in form_fields(algorithm, {}, {}).values()
        for each in group
    }
    assert everywhere == set(RoundConfig.model_fields) - {"algorithm"}
