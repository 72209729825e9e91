"""The frozen spec of each stage's run, and what a finished run leaves: a model version."""

from typing import Any

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.rounds import run_kind
from app.errors import InvalidInput
from app.models import ModelVersion, Project, Round, Run, Snapshot
from app.rounds import queries
from app.rounds.forms import RoundConfig, default_optimiser
from app.rounds.snapshots import prompts_file
from app.specs import (
    DPOSpec,
    EvaluateSpec,
    Generation,
    ModelRef,
    Optimiser,
    PPOSpec,
    RewardSpec,
    RunSpec,
    SampleSpec,
)

EVALUATION_PROMPTS = 100
EVALUATION_SEED = 1_000_003
PROMPT_ROOM = 512  # tokens left for a prompt beside the longest response


def ref(model: ModelVersion) -> ModelRef:
    return ModelRef(base=model.base, adapter=model.adapter)


def output_of(run_id: int) -> str:
    """Where a training run's model is stored."""
    return f"models/run-{run_id}"


def make_run(session: Session, store: ArtifactStore, project: Project, round_: Round) -> Run | None:
    """Adds the run that the round's state asks for, its spec complete; None where nothing is left to run.

    Raises:
        InvalidInput: the project has no prompts of the kind the run needs.
    """
    kind = run_kind(round_.state, round_.algorithm)
    if kind is None:
        return None
    spec = _spec(session, store, project, round_, kind)
    return _add_run(session, project, spec, round_.id)


def make_sampling_run(session: Session, store: ArtifactStore, project: Project, prompts: int) -> Run:
    """Adds a run that samples from the project's present policy, outside any round."""
    assert project.policy_id is not None
    policy = session.get_one(ModelVersion, project.policy_id)
    generation = Generation.model_validate(project.generation)
    # Another seed each time: with an old one the same policy would say to the same prompts what it has said before.
    seed = queries.count_runs(session, project.id)
    return _add_run(session, project, _sample_spec(session, store, project, policy, generation, prompts, seed), None)


def _add_run(session: Session, project: Project, spec: RunSpec, round_id: int | None) -> Run:
    run = Run(project_id=project.id, round_id=round_id, kind=spec.kind, spec=spec.model_dump(mode="json"))
    session.add(run)
    session.flush()
    return run


def _spec(session: Session, store: ArtifactStore, project: Project, round_: Round, kind: str) -> RunSpec:
    config = RoundConfig.model_validate(round_.config)
    models = queries.models_by_id(
        session, {round_.policy_before_id, round_.policy_after_id, round_.reward_model_id, project.base_model_id}
    )
    before = models[round_.policy_before_id]
    base = models[project.base_model_id] if project.base_model_id else before
    reference = ref(before if config.reference == "previous" else base)
    optimiser = default_optimiser(config.algorithm).model_copy(
        update={"learning_rate": config.learning_rate, "epochs": config.epochs}
    )
    snapshot = session.get_one(Snapshot, round_.snapshot_id).location
    # Long responses need longer sequences, or the round would leave them out and fail once it samples.
    default_length: int = EvaluateSpec.model_fields["max_length"].default
    max_length = max(default_length, config.max_new_tokens + PROMPT_ROOM)

    if kind == "reward":
        return RewardSpec(
            backbone=ref(before),
            snapshot=snapshot,
            optimiser=_reward_optimiser(config),
            max_length=max_length,
            seed=config.seed,
        )
    if kind == "dpo":
        return DPOSpec(
            policy=ref(before),
            reference=reference,
            snapshot=snapshot,
            optimiser=optimiser,
            beta=config.beta,
            max_length=max_length,
            seed=config.seed,
        )
    if kind == "ppo":
        prompts = queries.train_prompts(session, project.id)
        if not prompts:
            raise InvalidInput("The project has no train prompts, which PPO samples from.", "Import some, or use DPO.")
        return PPOSpec(
            policy=ref(before),
            reference=reference,
            reward_models=(models[_given(round_.reward_model_id)].base,),
            prompts=prompts_file(store, prompts),
            optimiser=optimiser,
            episodes=config.episodes,
            rollout_size=min(PPOSpec.model_fields["rollout_size"].default, config.episodes),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            kl_coef=config.kl_coef,
            kl_target=config.kl_target,
            max_length=max_length,
            seed=config.seed,
        )
    after = models[_given(round_.policy_after_id)]
    seed = config.seed + round_.number
    if kind == "sample":
        return _sample_spec(session, store, project, after, config.generation, config.prompts, seed)
    unseen = queries.prompts_to_evaluate(session, project.id, EVALUATION_PROMPTS)
    if not unseen:
        raise InvalidInput("The project has no prompts to evaluate on.", "Import some and retry the round.")
    # Always measured against the base model: then the figures of all rounds stand on one axis.
    return EvaluateSpec(
        policy=ref(after),
        reference=ref(base),
        reward_models=(models[_given(round_.reward_model_id)].base,),
        prompts=prompts_file(store, unseen),
        generation=config.generation.model_copy(update={"samples_per_prompt": 2}),
        max_length=max_length,
        # Other samples than those drawn for the queue: figures over both then count nothing twice.
        seed=seed + EVALUATION_SEED,
    )


def _sample_spec(
    session: Session,
    store: ArtifactStore,
    project: Project,
    model: ModelVersion,
    generation: Generation,
    limit: int,
    seed: int,
) -> SampleSpec:
    prompts = queries.prompts_to_sample(session, project.id, limit, seed)
    if not prompts:
        raise InvalidInput("The project has no train or held-out prompts to sample from.", "Import prompts first.")
    return SampleSpec(models=(ref(model),), prompts=prompts_file(store, prompts), generation=generation, seed=seed)


def _reward_optimiser(config: RoundConfig) -> Optimiser:
    default: Optimiser = RewardSpec.model_fields["optimiser"].default
    return default.model_copy(update={"learning_rate": config.reward_learning_rate, "epochs": config.reward_epochs})


def _given(model_id: int | None) -> int:
    assert model_id is not None, "an earlier stage made this model"
    return model_id


def record_model(session: Session, round_: Round, run: Run, digest: str | None, result: dict[str, Any]) -> ModelVersion:
    """Adds the model that a finished training run of a round stored, and names it in the round."""
    before = session.get_one(ModelVersion, round_.policy_before_id)
    snapshot = session.get_one(Snapshot, round_.snapshot_id)
    card = {"round": round_.number, "run": run.id, "algorithm": run.kind, "snapshot": snapshot.digest, "result": result}
    is_adapter = run.kind != "reward" and run.spec.get("lora") is not None
    model = ModelVersion(
        project_id=run.project_id,
        role="reward" if run.kind == "reward" else "policy",
        name=f"{'reward' if run.kind == 'reward' else 'policy'}-{round_.number}",
        parent_id=before.id,
        run_id=run.id,
        base=before.base if is_adapter else output_of(run.id),
        adapter=output_of(run.id) if is_adapter else None,
        digest=digest,
        card=card,
    )
    session.add(model)
    session.flush()
    if model.role == "reward":
        round_.reward_model_id = model.id
    else:
        round_.policy_after_id = model.id
    return model
