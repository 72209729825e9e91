"""Estimates of a round's duration and memory, before it starts: see `app.domain.costs`."""

import json
from math import prod
from pathlib import Path
from typing import Any

from sqlalchemy import Float, String, cast, func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.costs import Cost, Data, Freezing, Plan, Rate, Shape, cost, freezing, memory_of, works
from app.domain.rounds import SAMPLING_ALGORITHMS
from app.errors import NotFound
from app.models import Completion, ModelVersion, Project, Prompt, Round, Run
from app.rounds import queries
from app.rounds.forms import RoundConfig
from app.rounds.stages import EVALUATION_PROMPTS
from app.suites import queries as suite_queries

CHARACTERS = 4  # per token, roughly, in English
RECENT = 1000  # prompts and responses whose length is averaged


def estimate(
    session: Session,
    store: ArtifactStore,
    project: Project,
    config: RoundConfig,
    counts: dict[str, Any],
) -> Cost | None:
    """Return what a round with these settings and counts would take; None without a model.

    Args:
        counts: of the snapshot it would read.
    """
    if project.policy_id is None:
        return None
    policy = session.get_one(ModelVersion, project.policy_id)
    shape = shape_of(store, policy.base)
    plan = plan_of(config)
    is_sft = config.algorithm == "sft"  # it trains no reward model, and is evaluated by the newest one or by suites
    data = data_of(session, project, config, counts)
    is_evaluated = not is_sft or data.suite_cases > 0 or queries.newest_reward_model_id(session, project.id) is not None
    runs = works(plan, data, trains_reward=not is_sft, evaluates=is_evaluated)
    memory = None
    if shape:
        # With adapters, policy and reference share one base. All members of the reward model share another, which is
        # loaded beside the policy.
        models = 1 + (not config.lora and not is_sft) + (config.algorithm in SAMPLING_ALGORITHMS)
        learns_adapters = config.lora and (
            is_sft or config.reward_lora or getattr(config, "reward_trunk", "") == "frozen"
        )
        tokens = getattr(config, "microbatch_tokens", None) or 1024
        memory = memory_of(shape, models=models, full_weights=not learns_adapters, tokens=tokens)
    found = cost(runs, rates_of(session, project.id, policy.base), shape, memory)
    rows = counts["train"] + counts.get("heldout", 0)
    return found._replace(parts=[freezing(rows, freezing_of(session, project.id)), *found.parts])


def plan_of(config: RoundConfig) -> Plan:
    """Return the settings that determine how much work a round is."""
    names = {"answers": "rollout_samples", "pairs": "rollout_pairs", "queue_prompts": "prompts"}
    given = {field: getattr(config, names.get(field, field), None) for field in Plan._fields}
    if getattr(config, "reward_trunk", "") == "frozen":  # data is read once to fit the heads, once to measure them
        given |= {"reward_epochs": 1, "reward_members": 1}
    else:  # cross-fitting needs adapters: see trainer.reward.cross_fitting
        given["reward_members"] = max(1, getattr(config, "reward_folds", 1)) if config.reward_lora else 1
    # At most two other policies answer the held-out prompts. With `sample_previous`, the previous one answers all
    # prompts.
    models = (2 + config.evaluation_share) if config.sample_previous else (1 + 2 * config.evaluation_share)
    given["queue_samples"] = config.samples_per_prompt * models
    return Plan(**{field: value for field, value in given.items() if value is not None})


def data_of(session: Session, project: Project, config: RoundConfig, counts: dict[str, Any]) -> Data:
    """Return how much data there is; lengths are means over the project's newest prompts and responses."""
    splits = dict(
        session.execute(
            select(Prompt.split, func.count()).where(Prompt.project_id == project.id).group_by(Prompt.split)
        ).all()
    )
    unseen = splits.get("heldout", 0) + splits.get("regression", 0)
    asked = (
        select(func.length(cast(Prompt.messages, String)).label("characters"))
        .where(Prompt.project_id == project.id)
        .order_by(Prompt.id.desc())
        .limit(RECENT)
        .subquery()
    )
    characters = session.scalar(select(func.avg(asked.c.characters)))
    tokens = func.coalesce(Completion.n_tokens, func.length(Completion.text) / CHARACTERS)
    newest = (
        select(tokens.label("tokens"))
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.project_id == project.id)
        .order_by(Completion.id.desc())
        .limit(RECENT)
        .subquery()
    )
    response = session.scalar(select(func.avg(cast(newest.c.tokens, Float))))
    return Data(
        pairs=counts["train"],
        train_prompts=splits.get("train", 0),
        evaluation_prompts=min(EVALUATION_PROMPTS, unseen or splits.get("train", 0)),
        queue_prompts=splits.get("train", 0) + splits.get("heldout", 0),
        prompt_tokens=float(characters or 0) / CHARACTERS,
        response_tokens=min(float(config.max_new_tokens), response or config.max_new_tokens),
        suite_cases=suite_queries.count_cases(session, project.id)[1],
    )


def rates_of(session: Session, project_id: int, base: str) -> dict[str, Rate]:
    """Return, by kind, the speed of the newest finished run on the same base model, preferably one of this project."""
    model = func.coalesce(
        Run.spec["policy"]["base"].astext, Run.spec["backbone"]["base"].astext, Run.spec["models"][0]["base"].astext
    )
    seconds = cast(Run.result["seconds"].astext, Float)
    query = (
        select(Run.kind, Run.result, Round.number, Run.project_id)
        .outerjoin(Round, Round.id == Run.round_id)
        .where(Run.state == "succeeded", model == base, seconds > 0, cast(Run.result["tokens"].astext, Float) > 0)
        .ext(distinct_on(Run.kind))
        .order_by(Run.kind, (Run.project_id == project_id).desc(), Run.id.desc())
    )
    found = {}
    for row in session.execute(query):
        # Other projects' runs only show how fast this machine is.
        is_own_round = row.number is not None and row.project_id == project_id
        source = f"as round {row.number}" if is_own_round else "as an earlier run"
        rate = row.result["tokens"] / row.result["seconds"]
        found[row.kind] = Rate(rate, f"{source}: {rate:,.0f} tokens a second", row.result.get("peak_memory"))
    return found


def freezing_of(session: Session, project_id: int) -> Freezing | None:
    """Return the speed of the newest freeze that took long enough to measure; None if there is none."""
    seconds = cast(Run.result["seconds"].astext, Float)
    query = (
        select(Round.number, cast(Run.result["read"].astext, Float) / seconds)
        .join(Round, Round.id == Run.round_id)
        .where(Run.project_id == project_id, Run.kind == "freeze", Run.state == "succeeded", seconds >= 1)
        .order_by(Run.id.desc())
        .limit(1)
    )
    found = session.execute(query).first()
    if found is None or not found[1]:
        return None
    rate = float(found[1])
    return Freezing(rate, f"as round {found[0]}: {rate:,.0f} rows a second")


def shape_of(store: ArtifactStore, base: str) -> Shape | None:
    """Return a model's size from its config.json and safetensors headers; None if it is not on this machine."""
    try:
        folder = store.resolve(base)
        config = json.loads((folder / "config.json").read_text())
        parameters = sum(_parameters(path) for path in folder.glob("*.safetensors"))
        hidden = int(config["hidden_size"])
        return Shape(
            parameters=parameters,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config.get("intermediate_size") or 4 * hidden),
            vocabulary=int(config["vocab_size"]),
        )
    except (NotFound, OSError, ValueError, KeyError, TypeError):
        return None


def _parameters(path: Path) -> int:
    """Count a safetensors file's parameters from its header: 8 bytes with its length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
