"""The way back: sampled responses are stored, and comparisons open as soon as a prompt's samples are complete."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.pairing import Pair, Sample, pairs_across, pairs_within
from app.errors import Conflict
from app.models import Comparison, Completion, Project, Prompt, Round, Run
from app.rounds import queries
from app.rounds.forms import RoundConfig
from app.specs import SampleSpec

PAIRS_PER_PROMPT: int = RoundConfig.model_fields["pairs_per_prompt"].default


class NewSample(NamedTuple):
    """A response that a sampling run has drawn."""

    prompt_id: int
    sample_index: int
    text: str
    finish_reason: str  # eos | length
    n_tokens: int
    seed: int


def store_samples(session: Session, run: Run, samples: Sequence[NewSample]) -> int:
    """Stores a batch of a sampling run and opens comparisons for prompts it completes; returns how many it opened.

    The caller holds the run's row locked. A sample stored before is skipped, and a prompt's comparisons are opened by
    the transaction that stores its last sample, so a resumed run doubles neither.

    Raises:
        Conflict: the project has no published rubric, or the model the samples came from is not known.
    """
    spec = SampleSpec.model_validate(run.spec)
    model = queries.model_of(session, run.project_id, spec.model.base, spec.model.adapter)
    if model is None:
        raise Conflict("The model that this run samples from is no longer registered.", "Start the sampling again.")
    sampling = spec.generation.model_dump(include={"temperature", "max_new_tokens"})
    rows = [
        {**sample._asdict(), "model_version_id": model.id, "run_id": run.id, "sampling": sampling} for sample in samples
    ]
    stored = session.scalars(
        insert(Completion)
        .on_conflict_do_nothing(index_elements=["run_id", "prompt_id", "sample_index"])
        .returning(Completion.prompt_id),
        rows,
    ).all()
    touched = set(stored)
    if not touched:
        return 0
    completions = queries.completions_of_run(session, run.id, touched)
    counts = Counter(completion.prompt_id for completion in completions)
    complete = {prompt_id for prompt_id, n in counts.items() if n >= spec.generation.samples_per_prompt}
    by_prompt = {
        prompt_id: [completion for completion in completions if completion.prompt_id == prompt_id]
        for prompt_id in complete
    }
    return _open_comparisons(session, run, by_prompt)


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
        for purpose, pair in _pairs(prompts[prompt_id], completions, older.get(prompt_id, []), limit, seed):
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
    """(purpose, pair) to ask about for one prompt; pairs with older responses take half of the limit."""
    new, old = _samples(completions), _samples(older)
    across = pairs_across(new, old, limit - limit // 2, seed) if old else []
    within = pairs_within(new, limit - len(across) or 1, seed)
    purpose = "heldout" if prompt.split == "heldout" else "train"
    return [("human_eval", pair) for pair in across] + [(purpose, pair) for pair in within]


def _samples(completions: list[Completion]) -> list[Sample]:
    return [Sample(completion.id, completion.text) for completion in completions]
