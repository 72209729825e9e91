"""A project with a model, prompts and decided comparisons: the start of all tests of rounds."""

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.consensus import majority
from app.domain.replay import Reading
from app.labelers import fitting
from app.models import Comparison, Project, Prompt, Round, Run, Snapshot
from app.rounds import freezing, service
from app.rounds.forms import RoundConfig
from app.rounds.service import NewSample
from app.rounds.snapshot_queries import comparisons, moment
from app.rounds.snapshots import add_snapshot, chosen, pair_row, silent, write_comparisons, write_demonstrations
from app.rows import PairRow
from app.specs import Generation
from tests import factories

GENERATION = Generation(samples_per_prompt=4, max_new_tokens=8)


def make_project(session: Session, base: str = "models/base", *, train: int = 20, heldout: int = 2) -> Project:
    """A project whose base model has answered train and held-out prompts, with two judgments on each pair."""
    project = factories.project(session, generation=GENERATION.model_dump())
    factories.published_rubric(session, project)
    service.adopt_base_model(session, project, base, "base")
    labelers = [factories.user(session).id for _ in range(2)]
    for split, count in (("train", train), ("heldout", heldout)):
        for _ in range(count):
            prompt = factories.prompt(session, project, split=split, domain="factual")
            decided(session, project, prompt, labelers, purpose=split)
    return project


def decided(
    session: Session,
    project: Project,
    prompt: Prompt,
    labelers: list[int],
    *,
    texts: tuple[str, str] = ("short and right", "long, long, long and wrong"),
    preferences: tuple[int, ...] = (-2, -1),
    aspects: dict[str, int] | None = None,
    **values: Any,
) -> Comparison:
    """Add a settled comparison of the prompt, judged by the labelers, who agree on the aspects."""
    given = {"texts": texts, "prompt": prompt, "overlap": len(preferences), "state": "open"} | values
    comparison = factories.comparison(session, project, **given)
    for labeler_id, preference in zip(labelers, preferences, strict=True):
        factories.judgment(session, comparison, preference=preference, labeler_id=labeler_id, aspects=aspects or {})
    comparison.state = "settled"
    comparison.consensus, comparison.p_b, comparison.p_tie, _ = majority(preferences).rounded()
    session.flush()
    return comparison


def config(algorithm: str = "dpo", **values: Any) -> RoundConfig:
    sampling = GENERATION.model_dump(include={"samples_per_prompt", "max_new_tokens"})
    # Nobody judges in most tests, and the next round is to begin with the new policy.
    return RoundConfig.of({"algorithm": algorithm, "promotion": "reward_model", **sampling, **values})


def jobs(session: Session) -> list[int]:
    """Return the ids of runs that wait in the queue."""
    return list(
        session.scalars(text("SELECT (args->>'run_id')::int FROM procrastinate_jobs WHERE status = 'todo' ORDER BY id"))
    )


def last_run(session: Session, round_: Round) -> Run:
    return session.scalars(select(Run).where(Run.round_id == round_.id).order_by(Run.id.desc())).first() or Run()


def leave_files(store: ArtifactStore, run: Run) -> None:
    """Make the artifact of a training run; an empty folder is enough if nobody reads it."""
    if run.kind not in ("freeze", "sample", "evaluate"):
        (store.root / service.output_of(run.id)).mkdir(parents=True, exist_ok=True)


def new_samples(prompt_id: int, texts: list[str], first: int = 0) -> list[NewSample]:
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    return [NewSample(prompt_id, first + i, text, "eos", 3, 17 + i, sampling) for i, text in enumerate(texts)]


def frozen(session: Session, store: ArtifactStore, round_: Round) -> Round:
    """Bring the round past its first stage as the worker does, in the session's transaction."""
    run = last_run(session, round_)
    service.run_started(session, run)
    project = session.get_one(Project, round_.project_id)
    if round_.algorithm != "sft":
        fitting.refit(session, project)
    freezing.record(session, store, run, freezing.write(session, store, round_, silent))
    session.flush()
    return round_


def freeze(session: Session, store: ArtifactStore, project: Project, reading: Reading = Reading()) -> Snapshot:
    """Return a snapshot of the comparisons that a round would read now."""
    fitted = fitting.refit(session, project)
    written = write_comparisons(session, store, project.id, chosen(session, project.id, reading))
    return add_snapshot(session, project.id, written, moment(session), fitted.method)


def freeze_demonstrations(session: Session, store: ArtifactStore, project: Project) -> Snapshot:
    written = write_demonstrations(session, store, project.id)
    return add_snapshot(session, project.id, written, moment(session))


def pair_rows(session: Session, project: Project) -> list[PairRow]:
    """Return the comparisons that a round would read now, in the trainer's form."""
    ids = chosen(session, project.id, Reading()).comparison.tolist()
    return [pair_row(row) for row in comparisons(session, project.id, ids)]
