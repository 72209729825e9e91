"""Storing sampled responses; comparisons open as soon as a prompt's samples are complete."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.models import Completion, ModelVersion, Run
from app.rounds import queries
from app.rounds.opening import open_comparisons
from app.specs import RUN_SPEC, EvaluateSpec, SampleSpec


class NewSample(NamedTuple):
    """A response that a run has sampled; `sample_index` counts a prompt's samples from 0, over all models."""

    prompt_id: int
    sample_index: int
    text: str
    finish_reason: str  # eos | length
    n_tokens: int
    seed: int
    sampling: dict[str, Any]  # the sampling settings and the reward model's scores: see trainer.recipes.sample


def store_samples(session: Session, run: Run, samples: Sequence[NewSample]) -> int:
    """Store a batch of a run's samples; return how many comparisons it opened.

    A sampling run opens a prompt's comparisons in the transaction that stores the prompt's last sample, and samples
    that exist are skipped, so a resumed run duplicates neither. An evaluation's samples are stored without comparisons.
    A red-team answer is stored with its attempt, and a playground answer with its turn. The caller holds the run's row
    locked.

    Raises:
        Conflict: the project has no published rubric, or the model of the samples is unknown.
    """
    if store := {"red_team": queries.store_answer, "playground": queries.store_turn}.get(run.kind):
        for sample in samples:
            store(session, run.id, sample._asdict() | {"text": storable(sample.text)})
        return 0
    spec = RUN_SPEC.validate_python(run.spec)
    assert isinstance(spec, SampleSpec | EvaluateSpec)
    models = _sampled_models(session, run.project_id, spec)
    per_model = spec.generation.samples_per_prompt
    rows = [
        sample._asdict()
        | {
            "text": storable(sample.text),
            "model_version_id": models[sample.sample_index // per_model].id,
            "run_id": run.id,
        }
        for sample in samples
    ]
    stored = session.scalars(
        insert(Completion)
        .on_conflict_do_nothing(index_elements=["run_id", "prompt_id", "sample_index"])
        .returning(Completion.prompt_id),
        rows,
    ).all()
    touched = set(stored)
    if not touched or isinstance(spec, EvaluateSpec):
        return 0
    by_prompt: dict[int, list[Completion]] = {prompt_id: [] for prompt_id in touched}
    for completion in queries.completions_of_run(session, run.id, touched):
        by_prompt[completion.prompt_id].append(completion)
    heldout = queries.heldout_among(session, touched)
    complete = {
        prompt_id: found
        for prompt_id, found in by_prompt.items()
        if len(found) == per_model * (len(models) - (0 if prompt_id in heldout else spec.heldout_models))
    }
    return open_comparisons(session, run, complete)


def storable(value: Any) -> Any:
    """Replace NUL in all texts of a value, a model's for example: PostgreSQL holds it neither in text nor in JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, Mapping):
        return {name: storable(each) for name, each in value.items()}
    return [storable(each) for each in value] if isinstance(value, list | tuple) else value


def _sampled_models(session: Session, project_id: int, spec: SampleSpec | EvaluateSpec) -> list[ModelVersion]:
    """Return the models in the spec's order: sample `index` comes from model `index // samples_per_prompt`."""
    found = []
    for source in spec.models if isinstance(spec, SampleSpec) else (spec.policy,):
        model = queries.model_of(session, project_id, source.base, source.adapter)
        if model is None:
            raise Conflict("The model that this run samples from is no longer registered.", "Start the sampling again.")
        found.append(model)
    return found
