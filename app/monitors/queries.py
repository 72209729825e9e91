"""SQL of the monitors' pages."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session

from app.domain.rounds import SAMPLING_ALGORITHMS
from app.models import Completion, Metric, MonitorReview, Prompt, Round, Run, User

MOST_RESPONSES = 2000  # of an evaluation, looked through for the worst


def watched_rounds(session: Session, project_id: int, most: int) -> list[Round]:
    """The newest rounds that an evaluation has finished for, or whose policy's run has given alarms; newest first."""
    evaluated = select(Run.round_id).where(Run.kind == "evaluate", Run.state == "succeeded")
    raised = select(Run.round_id).where(Run.kind.in_(SAMPLING_ALGORITHMS), Run.result["alarms"][0].is_not(None))
    found = select(Round).where(Round.project_id == project_id, or_(Round.id.in_(evaluated), Round.id.in_(raised)))
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


def policy_runs(session: Session, round_ids: Sequence[int]) -> list[Run]:
    """The runs of these rounds that sample the policy while they train it, in their order."""
    found = select(Run).where(Run.round_id.in_(round_ids), Run.kind.in_(SAMPLING_ALGORITHMS))
    return list(session.scalars(found.order_by(Run.id)))


def kept_examples(session: Session, round_id: int) -> dict[str, list[dict[str, Any]]]:
    """By figure, the examples that a round's evaluation wrote down."""
    query = select(Run.result["examples"]).where(Run.round_id == round_id, Run.kind == "evaluate")
    return session.scalars(query.order_by(Run.id.desc()).limit(1)).first() or {}


def reviews(session: Session, round_ids: Sequence[int]) -> Sequence[Any]:
    """(review, its reviewer's name) of these rounds."""
    found = select(MonitorReview, User.name).join(User, User.id == MonitorReview.reviewer_id)
    return session.execute(found.where(MonitorReview.round_id.in_(round_ids))).all()


def reviewed(session: Session, round_id: int) -> set[str]:
    """The names of the monitors with a review of this round."""
    return set(session.scalars(select(MonitorReview.monitor).where(MonitorReview.round_id == round_id)))


def store_review(session: Session, round_id: int, monitor: str, verdict: str, note: str, reviewer_id: int) -> None:
    """Insert a review, or replace the one that is there."""
    said = {"verdict": verdict, "note": note, "reviewer_id": reviewer_id, "reviewed_at": func.now()}
    new = insert(MonitorReview).values(round_id=round_id, monitor=monitor, **said)
    session.execute(new.on_conflict_do_update(index_elements=["round_id", "monitor"], set_=said))
