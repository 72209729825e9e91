"""The way back: sampled responses are stored, and comparisons open as soon as a prompt's samples are complete."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.pairing import Pair, Sample, pairs_across, pairs_within
from app.errors import Conflict
from app.models import Comparison, Completion, ModelVersion, Project, Prompt, Round, Run
from app.rounds import queries
from app.rounds.forms import RoundConfig
from app.specs import RUN_SPEC, EvaluateSpec, SampleSpec

PAIRS_PER_PROMPT: int = RoundConfig.model_fields["pairs_per_prompt"].default


class NewSample(NamedTuple):
    """A response that a run has drawn; `sample_index` counts a prompt's samples from 0, all models together."""

    prompt_id: int
    sample_index: int
    text: str
    finish_reason: str  # eos | length
    n_tokens: int
    seed: int
    sampling: dict[str, float]


def store_samples(session: Session, run: Run, samples: Sequence[NewSample]) -> int:
    """Stores a batch of a run's samples; returns how many comparisons it opened.

    A sampling run opens a prompt's comparisons in the transaction that stores the prompt's last sample, and a sample
    stored before is skipped, so a resumed run doubles neither. An evaluation's samples are kept but not asked about; a
    red-team attempt's answer stays with the attempt. The caller holds the run's row locked.

    Raises:
        Conflict: the project has no published rubric, or the model the samples came from is not known.
    """
    if run.kind == "red_team":
        for sample in samples:
            queries.store_answer(session, run.id, sample._asdict() | {"text": _storable(sample.text)})
        return 0
    spec = RUN_SPEC.validate_python(run.spec)
    assert isinstance(spec, SampleSpec | EvaluateSpec)
    models = _sampled_models(session, run.project_id, spec)
    per_model = spec.generation.samples_per_prompt
    rows = [
        sample._asdict()
        | {
            "text": _storable(sample.text),
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
    wanted = per_model * len(models)
    return _open_comparisons(session, run, {p: found for p, found in by_prompt.items() if len(found) == wanted})


def _storable(text: str) -> str:
    """A model may say NUL, which PostgreSQL's text cannot hold."""
    return text.replace("\0", "\ufffd")


def _sampled_models(session: Session, project_id: int, spec: SampleSpec | EvaluateSpec) -> list[ModelVersion]:
    """The models in the spec's order: sample `index` is of model `index // samples_per_prompt`."""
    found = []
    for source in spec.models if isinstance(spec, SampleSpec) else (spec.policy,):
        model = queries.model_of(session, project_id, source.base, source.adapter)
        if model is None:
            raise Conflict("The model that this run samples from is no longer registered.", "Start the sampling again.")
        found.append(model)
    return found


def _open_comparisons(session: Session, run: Run, by_prompt: dict[int, list[Completion]]) -> int:
    if not by_prompt:
        return 0
    project = session.get_one(Project, run.project_id)
    rubric_id = queries.newest_rubric_id(session, project.id)
    if rubric_id is None:
        raise Conflict("The project has no published rubric.", "Publish one, then retry.")
    round_ = session.get_one(Round, run.round_id) if run.round_id else None
    limit = RoundConfig.model_validate(round_.config).pairs_per_prompt if round_ else PAIRS_PER_PROMPT
    prompts = queries.prompts_by_id(session, set(by_prompt))
    heldout = {prompt_id for prompt_id in by_prompt if prompts[prompt_id].split == "heldout"}
    older = queries.newest_completions(session, heldout, round_.policy_before_id) if round_ else {}

    opened = 0
    for prompt_id, completions in by_prompt.items():
        seed = run.id * 1_000_003 + prompt_id
        # Where the previous policy was sampled too, what it says now stands in place of what it said before.
        before_id = round_.policy_before_id if round_ else None
        old = [each for each in completions if each.model_version_id == before_id]
        new = [each for each in completions if each.model_version_id != before_id]
        for purpose, pair in _pairs(prompts[prompt_id], new, old or older.get(prompt_id, []), limit, seed):
            comparison = Comparison(
                project_id=project.id,
                prompt_id=prompt_id,
                completion_a_id=pair[0],
                completion_b_id=pair[1],
                rubric_id=rubric_id,
                round_id=run.round_id,
                purpose=purpose,
                overlap=project.overlap,
                # The newest policy's responses are asked about first: judgments of them teach it most.
                priority=round_.number if round_ else 0,
            )
            session.add(comparison)
            opened += 1
    session.flush()
    return opened


def _pairs(
    prompt: Prompt, completions: list[Completion], older: list[Completion], limit: int, seed: int
) -> list[tuple[str, Pair]]:
    """(purpose, pair) to ask about for one prompt; pairs with older responses take half of the limit.

    Only on held-out prompts do they tell how often people prefer the new policy: it was trained on the others.
    """
    new, old = _samples(completions), _samples(older)
    across = pairs_across(new, old, limit - limit // 2, seed) if old else []
    within = pairs_within(new, limit - len(across) or 1, seed)
    heldout = prompt.split == "heldout"
    return [("human_eval" if heldout else "train", pair) for pair in across] + [
        ("heldout" if heldout else "train", pair) for pair in within
    ]


def _samples(completions: list[Completion]) -> list[Sample]:
    return [Sample(completion.id, completion.text) for completion in completions]
