"""The frozen spec of each stage's run, and recording the model that a finished run leaves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.documents import LabelingSettings
from app.domain import yardstick
from app.domain.rounds import ALGORITHMS, SAMPLING_ALGORITHMS, Stage, plan, run_kind, run_seed
from app.errors import InvalidInput
from app.models import ModelVersion, Project, Prompt, Round, Run, Snapshot
from app.rounds import queries
from app.rounds.forms import HELDOUT_SHARE, SPECS, RoundConfig, lora, policy_settings, reward_optimiser
from app.rounds.snapshots import prompts_file, write_lines
from app.rows import AnswersRow, PromptRow
from app.settings import SamplingServer
from app.specs import RUN_SPEC, EvaluateSpec, FreezeSpec, Generation, ModelRef, RewardSpec, RunSpec, SampleSpec, Server
from app.suites import service as suites

EVALUATION_PROMPTS = 100
PROMPT_ROOM = 512  # tokens left for the prompt beside the longest response
MIN_PAIRS = 20  # with a winner; with fewer, training would learn noise (trainer.batching.data refuses them too)


def ref(model: ModelVersion) -> ModelRef:
    return ModelRef(base=model.base, adapter=model.adapter)


def output_of(run_id: int) -> str:
    """Return where a training run's model is stored."""
    return f"models/run-{run_id}"


def samples_of(run_id: int) -> str:
    """Return where a training run stores its policy's samples at each evaluation: see `app.rounds.training_samples`."""
    return f"runs/run-{run_id}/samples.jsonl"


def checkpoints_of(run_id: int) -> str:
    """Return the folder of a training run's checkpoints."""
    return f"checkpoints/run-{run_id}"


def plan_of(round_: Round) -> tuple[Stage, ...]:
    """Return the stages of a round; see app.domain.rounds."""
    return plan(round_.algorithm, round_.takes_suites or round_.reward_model_id is not None)


def rivals(round_: Round) -> tuple[int, ...]:
    """Return the policies that people compare the new one with; they may be the same.

    These are the last adopted policy, and the first one, which is the newest fine-tuned or base model.
    """
    return tuple(dict.fromkeys((round_.policy_before_id, round_.reference_id)))


class Maker(NamedTuple):
    """Creates the runs of one project with complete specs."""

    session: Session
    store: ArtifactStore
    project: Project
    server: SamplingServer | None = None

    def run_of(self, round_: Round) -> Run:
        """Add the run that the round's state requires.

        Raises:
            InvalidInput: the project has no prompts of the kind the run needs.
        """
        kind = run_kind(round_.state, round_.algorithm)
        assert kind is not None, "nothing runs in the state the round is in"
        return self._add(self._spec(round_, kind), round_.id)

    def sampling_run(self, prompts: int) -> Run:
        """Add a run that samples from the project's current policy, outside any round."""
        assert self.project.policy_id is not None
        policy = self.session.get_one(ModelVersion, self.project.policy_id)
        generation = Generation.model_validate(self.project.generation)
        # A new seed each time: with an old one, the same policy would repeat its earlier responses to the same prompts.
        seed = run_seed(0, "outside rounds", queries.count_runs(self.session, self.project.id))
        newest = queries.newest_reward_model_id(self.session, self.project.id)
        reward = self.session.get_one(ModelVersion, newest).base if newest else None
        max_length = room(SampleSpec.model_fields["max_length"].default, generation)
        return self._add(self._sample_spec([policy], generation, prompts, seed, reward, max_length), None)

    def answering_run(self, rows: Sequence[PromptRow], models: Sequence[ModelVersion], kind: str) -> Run:
        """Add a run in which each model answers each prompt once. The prompts are not the project's."""
        refs = [ref(model) for model in models]
        generation = Generation.model_validate(self.project.generation).model_copy(update={"samples_per_prompt": 1})
        spec = SampleSpec(
            models=tuple(refs),
            servers=_servers(self.server, refs),
            prompts=write_lines(self.store, "prompts", rows, compressed=False)[1],
            generation=generation,
            seed=run_seed(0, kind, queries.count_runs(self.session, self.project.id)),
        )
        return self._add(spec, None, kind=kind)

    def _add(self, spec: RunSpec, round_id: int | None, kind: str | None = None) -> Run:
        run = Run(
            project_id=self.project.id, round_id=round_id, kind=kind or spec.kind, spec=spec.model_dump(mode="json")
        )
        self.session.add(run)
        self.session.flush()
        return run

    def _spec(self, round_: Round, kind: str) -> RunSpec:
        if kind == "freeze":
            return FreezeSpec()
        config = RoundConfig.of(round_.config)
        models = queries.models_by_id(
            self.session,
            {round_.policy_before_id, round_.policy_after_id, round_.reward_model_id, round_.reference_id},
        )
        before, reference = ref(models[round_.policy_before_id]), ref(models[round_.reference_id])
        max_length = room(config.max_length, config.generation)
        seed = run_seed(config.seed, kind, round_.number)

        if kind == "reward":
            snapshot = self.session.get_one(Snapshot, round_.snapshot_id)
            return RewardSpec(
                **config.named(RewardSpec.model_fields, "reward_")
                | {
                    "backbone": before,
                    "snapshot": snapshot.location,
                    "aspects": decided_aspects(snapshot.counts) if config.reward_aspects else (),
                    "lora": lora(config, config.reward_lora),
                    "optimiser": reward_optimiser(config),
                    "max_length": max_length,
                    "seed": seed,
                }
            )
        if kind in ALGORITHMS:
            kept_to = before if config.reference == "previous" else reference
            reward = models[round_.reward_model_id].base if round_.reward_model_id else None
            return self._policy_spec(round_, config, before, kept_to, reward, max_length, seed)
        new = models[_given(round_.policy_after_id)]
        if kind == "sample":
            sampled = [new]
            if config.sample_previous:
                sampled.append(models[round_.policy_before_id])
            reward = models[round_.reward_model_id].base if round_.reward_model_id else None
            return self._sample_spec(
                sampled,
                config.generation,
                config.prompts,
                seed,
                reward,
                max_length,
                heldout_share=config.evaluation_share,
                rivals=[models[model_id] for model_id in rivals(round_)],
            )
        unseen = queries.prompts_to_evaluate(self.session, self.project.id, EVALUATION_PROMPTS)
        if not unseen:
            raise InvalidInput("The project has no prompts to evaluate on.", "Import some and retry the round.")
        scored_by = (models[round_.reward_model_id].base,) if round_.reward_model_id else ()
        # KL is measured against the project's reference, whatever reference training used, so that rounds are
        # comparable.
        base_samples = self._answers_file(round_.reference_id, unseen, config.generation)
        return EvaluateSpec(
            base_samples=base_samples,
            policy=ref(new),
            before=before,
            reference=reference,
            reward_models=scored_by,
            prompts=prompts_file(self.store, unseen),
            suites=suites.to_run(self.session, self.project.id),
            generation=config.generation.model_copy(update={"samples_per_prompt": 2}),
            max_length=max_length,
            # Different samples than those for the queue, so that figures over both count nothing twice.
            seed=seed,
        )

    def _policy_spec(
        self,
        round_: Round,
        config: RoundConfig,
        policy: ModelRef,
        reference: ModelRef,
        reward_model: str | None,
        max_length: int,
        seed: int,
    ) -> RunSpec:
        given: dict[str, Any] = {
            "seed": seed,
            "policy": policy,
            "reference": reference,
            "reward_models": (reward_model,),
            "ptx": self._file(round_.ptx_snapshot_id) if round_.ptx_snapshot_id else None,
            "thumbs": self._file(round_.thumbs_snapshot_id) if round_.thumbs_snapshot_id else None,
            "max_length": max_length,
        }
        given |= dict.fromkeys(("snapshot", "demonstrations"), self._file(round_.snapshot_id))
        if config.algorithm in SAMPLING_ALGORITHMS:
            prompts = queries.train_prompts(self.session, self.project.id)
            if not prompts:
                label = ALGORITHMS[config.algorithm]
                raise InvalidInput(
                    f"The project has no train prompts, which {label} samples from.", "Import some, or use DPO."
                )
            given["prompts"] = prompts_file(self.store, prompts)
        spec = SPECS[config.algorithm]
        own = policy_settings(config) | {name: value for name, value in given.items() if name in spec.model_fields}
        if "rollout_size" in own:
            own["rollout_size"] = min(own["rollout_size"], own["episodes"])
        return RUN_SPEC.validate_python(spec(**own))

    def _sample_spec(
        self,
        models: list[ModelVersion],
        generation: Generation,
        limit: int,
        seed: int,
        reward_model: str | None,
        max_length: int,
        heldout_share: float = HELDOUT_SHARE,
        rivals: Sequence[ModelVersion] = (),
    ) -> SampleSpec:
        """Return the spec for sampling these models.

        Rivals that have not answered all chosen held-out prompts are sampled on these too.
        """
        labeling = LabelingSettings.model_validate(self.project.labeling)
        shares = labeling.difficulties.model_dump()
        prompts = queries.prompts_to_sample(self.session, self.project.id, limit, seed, shares, heldout_share)
        # Scoring needs a pass over every sample, so do it only if a pair selection policy uses the scores.
        scores = labeling.pairs.near_miss > 0 or labeling.pairs.uncertain > 0
        if not prompts:
            raise InvalidInput("The project has no train or held-out prompts to sample from.", "Import prompts first.")
        heldout = {prompt.id for prompt in prompts if prompt.split == "heldout"}
        sampling = generation.model_dump(include={"temperature", "max_new_tokens"})
        lacking = [
            rival
            for rival in rivals
            if rival not in models and not queries.has_answered(self.session, heldout, rival.id, sampling)
        ]
        sampled = [ref(model) for model in models]
        return SampleSpec(
            models=(*sampled, *(ref(model) for model in lacking)),
            heldout_models=len(lacking),
            servers=_servers(self.server, sampled),  # for the rivals it is unknown whether the server still has them
            prompts=prompts_file(self.store, prompts),
            generation=generation,
            reward_models=(reward_model,) if reward_model and scores else (),
            max_length=max_length,
            seed=seed,
        )

    def _answers_file(self, model_id: int, prompts: Sequence[Prompt], generation: Generation) -> str | None:
        """Return the file of a model's earlier answers to these prompts with the same sampling settings; None if there
        are none.

        The evaluation uses it as the best-of-n yardstick.
        """
        sampling = generation.model_dump(include={"temperature", "max_new_tokens"})
        ids = {prompt.id for prompt in prompts}
        found = queries.answers(self.session, ids, model_id, sampling, yardstick.MOST)
        rows = [AnswersRow(prompt_id=prompt_id, texts=tuple(texts)) for prompt_id, texts in sorted(found.items())]
        return write_lines(self.store, "answers", rows, compressed=False)[1] if rows else None

    def _file(self, snapshot_id: int | None) -> str:
        return self.session.get_one(Snapshot, snapshot_id).location


def decided_aspects(counts: dict[str, Any]) -> tuple[str, ...]:
    """Return the aspects that enough of a snapshot's comparisons decide, by its counts.

    Raises:
        InvalidInput: there is none.
    """
    found = tuple(name for name, n in sorted(counts.get("aspects", {}).items()) if n >= MIN_PAIRS)
    if not found:
        raise InvalidInput(
            f"No aspect is decided in {MIN_PAIRS} of the comparisons to train on, so no aspect can have a head.",
            "Switch the reward model's aspects off, or collect judgments that rate them.",
        )
    return found


def _servers(server: SamplingServer | None, models: Sequence[ModelRef]) -> tuple[Server | None, ...]:
    """Return the server that samples each model.

    A configured model name applies only to the first model; the worker samples the others.
    """
    if server is None:
        return ()
    if server.model is not None:
        return (Server(url=server.url, model=server.model), *[None] * (len(models) - 1))
    locations = [model.adapter or model.base for model in models]
    return tuple(Server(url=server.url, model=each.rstrip("/").rpartition("/")[2]) for each in locations)


def sample_by(run: Run, server: SamplingServer | None) -> None:
    """Update a retried sampling run to the current server, because its old address may have been wrong."""
    spec = SampleSpec.model_validate(run.spec)
    models = spec.models[: len(spec.models) - spec.heldout_models]
    servers = [each and each.model_dump(mode="json") for each in _servers(server, models)]
    run.spec = run.spec | {"servers": servers}


def room(max_length: int, generation: Generation) -> int:
    """Return a sequence length with room for the longest response. Otherwise the round would drop rows
    and fail later."""
    return max(max_length, generation.max_new_tokens + PROMPT_ROOM)


def _given(model_id: int | None) -> int:
    assert model_id is not None, "an earlier stage made this model"
    return model_id


def record_model(session: Session, round_: Round, run: Run, digest: str | None, result: dict[str, Any]) -> ModelVersion:
    """Add the model that a finished training run of a round stored, and set it in the round."""
    before = session.get_one(ModelVersion, round_.policy_before_id)
    snapshot = session.get_one(Snapshot, round_.snapshot_id)
    card = {"round": round_.number, "run": run.id, "algorithm": run.kind, "snapshot": snapshot.digest, "result": result}
    role = run.kind if run.kind in ("reward", "sft") else "policy"
    lora = run.spec.get("lora") is not None
    if run.kind == "reward" and lora:
        # A reward model's folder names its own base, so scoring needs only the folder.
        card |= {"base": run.spec["backbone"]["base"]}
    is_adapter = run.kind != "reward" and lora
    model = ModelVersion(
        project_id=run.project_id,
        role=role,
        name=f"{role}-{round_.number}",
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
