"""SQL of the monitors' pages."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.models import Completion, Metric, Prompt, Round, Run

MOST_RESPONSES = 2000  # of an evaluation, looked through for the worst


def evaluated_rounds(session: Session, project_id: int, most: int) -> list[Round]:
    """The newest rounds that an evaluation has finished for, the newest first."""
    evaluated = select(Run.round_id).where(Run.kind == "evaluate", Run.state == "succeeded")
    found = select(Round).where(Round.project_id == project_id, Round.id.in_(evaluated))
    return list(session.scalars(found.order_by(Round.number.desc()).limit(most)))


def evaluations(session: Session, round_ids: Sequence[int]) -> Sequence[Any]:
    """(round_id, slice, name, value): the newest value of every metric of these rounds' evaluations."""
    query = (
        select(Run.round_id, Metric.slice, Metric.name, Metric.value)
        .join(Run, Run.id == Metric.run_id)
        .where(Run.round_id.in_(round_ids), Run.kind == "evaluate")
        .ext(distinct_on(Run.round_id, Metric.slice, Metric.name))
        .order_by(Run.round_id, Metric.slice, Metric.name, Metric.step.desc())
    )
    return session.execute(query).all()


def responses(session: Session, round_id: int) -> Sequence[Any]:
    """(prompt with tags, response) of a round's evaluation: what its new policy said, at most `MOST_RESPONSES`."""
    query = (
        select(
            Prompt.id.label("prompt_id"),
            Prompt.messages,
            Prompt.domain,
            Completion.text,
            Completion.n_tokens,
            Completion.finish_reason,
        )
        .join(Completion, Completion.prompt_id == Prompt.id)
        .join(Run, Run.id == Completion.run_id)
        .where(Run.round_id == round_id, Run.kind == "evaluate")
    )
    return session.execute(query.order_by(Prompt.id, Completion.id).limit(MOST_RESPONSES)).all()
