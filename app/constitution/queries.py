"""SQL of constitution runs: which answers they take, what they stored, and where a revision went."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Select,
    case,
    exists,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db import among
from app.domain.slices import MOST_LISTED
from app.models import (
    Adjudication,
    AIRevision,
    Comparison,
    Completion,
    Demonstration,
    ModelVersion,
    Project,
    Prompt,
    Round,
    Rubric,
    Run,
)
from app.models.comparison import WINNER

# ---- answers ---------------------------------------------------------------------------------------------------------


def _originals(project: Project, judge_id: int | None, rubric_id: int, domain: str) -> Select[int, int]:
    """The current policy's newest answer to each train prompt, without those that this critic has revised under the
    rubric version. Failed answers are included again.

    Args:
        judge_id: None for all answers, also revised ones.
    """
    newest = (
        select(Completion.id, Completion.prompt_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(
            Prompt.project_id == project.id,
            Prompt.split == "train",
            Completion.model_version_id == project.policy_id,
            Completion.run_id.is_not(None),
            Completion.text.regexp_match(r"\S"),
        )
        .ext(distinct_on(Completion.prompt_id))
        .order_by(Completion.prompt_id, Completion.id.desc())
    )
    if domain:
        newest = newest.where(Prompt.domain == domain)
    found = newest.subquery()
    query = select(found.c.id, found.c.prompt_id)
    if judge_id is None:
        return query
    done = exists().where(
        AIRevision.completion_id == found.c.id,
        AIRevision.judge_id == judge_id,
        AIRevision.rubric_id == rubric_id,
        AIRevision.outcome != "failed",
    )
    return query.where(~done)


def originals(
    session: Session, project: Project, judge_id: int, rubric_id: int, domain: str, count: int, seed: int
) -> list[int]:
    """Ids of at most `count` answers, drawn by the seed."""
    found = _originals(project, judge_id, rubric_id, domain)
    prompt = found.selected_columns[1]
    order = func.hashint8extended(prompt, literal(seed, BigInteger))
    return list(session.scalars(found.order_by(order, prompt).limit(count)))


def count_originals(session: Session, project: Project) -> int:
    """Train prompts that the current policy has answered."""
    return session.scalar(select(func.count()).select_from(_originals(project, None, 0, "").subquery())) or 0


def domains(session: Session, project_id: int) -> list[str]:
    found = select(Prompt.domain).where(Prompt.project_id == project_id, Prompt.split == "train", Prompt.domain != "")
    return list(session.scalars(found.distinct().order_by(Prompt.domain).limit(MOST_LISTED)))


class Answer(NamedTuple):
    """An answer to revise. priority: number of the round that sampled it; 0 outside rounds."""

    id: int
    text: str
    prompt: Prompt
    priority: int


def answers(session: Session, project_id: int, ids: Sequence[int]) -> dict[int, Answer]:
    """Return answers by id, without those whose prompt is no longer a train prompt."""
    query = (
        select(Completion.id, Completion.text, Prompt, func.coalesce(Round.number, 0))
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .outerjoin(Run, Run.id == Completion.run_id)
        .outerjoin(Round, Round.id == Run.round_id)
        .where(among(Completion.id, ids), Prompt.project_id == project_id, Prompt.split == "train")
    )
    return {row[0]: Answer(*row) for row in session.execute(query)}


# ---- what a run stored -----------------------------------------------------------------------------------------------


def principles(session: Session, rubric_id: int) -> list[str]:
    return [each["text"] for each in session.get_one(Rubric, rubric_id).principles]


def stored(session: Session, run_id: int) -> set[int]:
    """Return the ids of the run's answers that have an outcome."""
    return set(session.scalars(select(AIRevision.completion_id).where(AIRevision.run_id == run_id)))


def add(session: Session, values: dict[str, Any]) -> int | None:
    """Store an outcome and return its id; None if the run already has an outcome for this answer."""
    statement = upsert(AIRevision).values(**values)
    statement = statement.on_conflict_do_nothing(index_elements=["run_id", "completion_id"])
    return session.scalar(statement.returning(AIRevision.id))


def add_demonstration(session: Session, values: dict[str, Any]) -> int | None:
    """Add a demonstration and return its id; None if the prompt already has one with exactly this text."""
    statement = upsert(Demonstration).values(**values)
    statement = statement.on_conflict_do_nothing(index_elements=["prompt_id", "digest"])
    return session.scalar(statement.returning(Demonstration.id))


def set_outcome(session: Session, revision_id: int, revised_id: int | None, demonstration_id: int | None) -> None:
    row = session.get_one(AIRevision, revision_id)
    row.revised_id, row.demonstration_id = revised_id, demonstration_id


# ---- pages -----------------------------------------------------------------------------------------------------------


def runs(session: Session, project_id: int, most: int) -> list[Run]:
    """Newest first."""
    query = select(Run).where(Run.project_id == project_id, Run.kind == "revise")
    return list(session.scalars(query.order_by(Run.id.desc()).limit(most)))


def run_of(session: Session, project_id: int, run_id: int) -> Run | None:
    query = select(Run).where(Run.id == run_id, Run.project_id == project_id, Run.kind == "revise")
    return session.scalars(query).one_or_none()


class Totals(NamedTuple):
    """Counts of a run's answers.

    Attributes:
        judged: comparisons with a revision that labelers have decided; in `won` of them they prefer the revision.
        approved: demonstrations that a reviewer has approved.
        cost: None without prices.
        seconds: mean time per answer.
    """

    revised: int
    unchanged: int
    failed: int
    comparisons: int
    judged: int
    won: int
    demonstrations: int
    approved: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float


def totals(session: Session, run_ids: Sequence[int]) -> dict[int, Totals]:
    """By run; runs without a stored outcome are left out."""
    row = AIRevision
    # The revision is the newer response, so it is the comparison's B: see `app.constitution.service.keep`.
    winner = case((Adjudication.verdict.is_not(None), func.sign(Adjudication.verdict)), else_=literal_column(WINNER))
    decided = Comparison.state.in_(("settled", "adjudicated"))
    query = (
        select(
            row.run_id,
            func.count().filter(row.outcome == "revised"),
            func.count().filter(row.outcome == "unchanged"),
            func.count().filter(row.outcome == "failed"),
            func.count(Comparison.id),
            func.count(Comparison.id).filter(decided),
            func.count(Comparison.id).filter(decided, winner > 0),
            func.count(Demonstration.id),
            func.count(Demonstration.id).filter(Demonstration.state == "approved"),
            func.sum(row.prompt_tokens),
            func.sum(row.completion_tokens),
            func.sum(row.cost),
            func.avg(row.ms) / 1000,
        )
        .outerjoin(
            Comparison,
            (Comparison.completion_b_id == row.revised_id)
            & (Comparison.completion_a_id == row.completion_id)
            & (Comparison.relabel_of_id.is_(None) & Comparison.repeat_of_id.is_(None)),
        )
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .outerjoin(Demonstration, Demonstration.id == row.demonstration_id)
        .where(row.run_id.in_(run_ids))
        .group_by(row.run_id)
    )
    return {
        found[0]: Totals(*found[1:9], int(found[9]), int(found[10]), found[11], float(found[12]))
        for found in session.execute(query)
    }


class Shown(NamedTuple):
    """A revision on a page or in a file."""

    revision: AIRevision
    prompt: Prompt
    original: str
    model: str | None
    rubric_version: int | None


def revisions(session: Session, run_id: int, after: int, most: int) -> list[Shown]:
    """Return at most `most` of a run's revisions with an id above `after`, in order."""
    query = (
        select(AIRevision, Prompt, Completion.text, ModelVersion.name, Rubric.version)
        .join(Completion, Completion.id == AIRevision.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .join(Rubric, Rubric.id == AIRevision.rubric_id)
        .outerjoin(ModelVersion, ModelVersion.id == Completion.model_version_id)
        .where(AIRevision.run_id == run_id, AIRevision.id > after)
        .order_by(AIRevision.id)
        .limit(most)
    )
    return [Shown(*row) for row in session.execute(query)]
