"""SQL of what rounds measured, and of what people said about what they made."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, func, select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, aliased

from app.models import Comparison, Completion, Metric, Prompt, Round, Run, Snapshot


def metrics_from(session: Session, run_ids: list[int], run_id: int, step: int) -> Sequence[Any]:
    """Metrics over all rows, from a run's step on (that step included: it may have been written in two halves)."""
    query = select(Metric.run_id, Metric.name, Metric.step, Metric.value).where(
        Metric.run_id.in_(run_ids), Metric.slice == "", tuple_(Metric.run_id, Metric.step) >= (run_id, step)
    )
    return session.execute(query.order_by(Metric.run_id, Metric.step, Metric.name)).all()


def last_values(session: Session, run_ids: list[int]) -> Sequence[Any]:
    """The newest value of every metric and slice of some runs."""
    query = (
        select(Metric.run_id, Metric.name, Metric.slice, Metric.step, Metric.value)
        .where(Metric.run_id.in_(run_ids))
        .ext(distinct_on(Metric.run_id, Metric.name, Metric.slice))
        .order_by(Metric.run_id, Metric.name, Metric.slice, Metric.step.desc())
    )
    return session.execute(query).all()


def round_values(session: Session, round_ids: list[int], names: Sequence[str]) -> Sequence[Any]:
    """The newest value of these metrics, by slice, of the runs that measure a round."""
    query = (
        select(Run.round_id, Run.kind, Metric.name, Metric.slice, Metric.value)
        .join(Run, Run.id == Metric.run_id)
        .where(Run.round_id.in_(round_ids), Run.kind.in_(("reward", "evaluate")), Metric.name.in_(names))
        .ext(distinct_on(Run.round_id, Run.kind, Metric.name, Metric.slice))
        .order_by(Run.round_id, Run.kind, Metric.name, Metric.slice, Metric.step.desc())
    )
    return session.execute(query).all()


def snapshots_of(session: Session, round_ids: list[int]) -> dict[int, dict[str, Any]]:
    """By round: the counts of what it read."""
    query = select(Round.id, Snapshot.counts).join(Snapshot, Snapshot.id == Round.snapshot_id)
    return {row[0]: row[1] for row in session.execute(query.where(Round.id.in_(round_ids)))}


def human_eval(session: Session, round_ids: list[int]) -> Sequence[Any]:
    """Decided comparisons of a round's new policy with the previous one, those alike counted (n): prompt with its tags,
    which side is new, consensus."""
    new = aliased(Completion)
    alike = (
        Comparison.round_id,
        Comparison.prompt_id,
        Prompt.domain,
        Prompt.difficulty,
        Prompt.safety_category,
        (new.id == Comparison.completion_b_id).label("new_is_b"),
        Comparison.consensus,
        Comparison.p_b,
        Comparison.p_tie,
    )
    query = (
        select(*alike, func.count().label("n"))
        .join(Round, Round.id == Comparison.round_id)
        .join(
            new,
            and_(
                new.id.in_((Comparison.completion_a_id, Comparison.completion_b_id)),
                new.model_version_id == Round.policy_after_id,
            ),
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(
            Comparison.round_id.in_(round_ids),
            Comparison.purpose == "human_eval",
            Comparison.state.in_(("settled", "adjudicated")),
            Comparison.consensus.is_not(None),
        )
        .group_by(*alike)
    )
    return session.execute(query).all()


def opened_comparisons(session: Session, round_ids: list[int]) -> dict[tuple[int, str], tuple[int, int]]:
    """By round and purpose: comparisons opened from its samples, and how many of them are decided."""
    query = (
        select(
            Comparison.round_id,
            Comparison.purpose,
            func.count(),
            func.count().filter(Comparison.state.in_(("settled", "adjudicated"))),
        )
        .where(Comparison.round_id.in_(round_ids))
        .group_by(Comparison.round_id, Comparison.purpose)
    )
    return {(row[0] or 0, row[1]): (row[2], row[3]) for row in session.execute(query)}
