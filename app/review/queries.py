"""SQL of the review queue: comparisons whose labelers split, lowest agreement first (ix_comparison_review)."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Text, cast, func, literal, select, tuple_
from sqlalchemy.orm import Session, aliased

from app.models import Adjudication, AuditEvent, Comparison, Completion, Judgment, ModelVersion, Prompt, Rubric, User

PAGE = 50
EXCERPT = 160  # characters


class Place(NamedTuple):
    """A place in the queue."""

    agreement: float
    comparison_id: int


class Queued(NamedTuple):
    place: Place
    messages: list[dict[str, str]]
    domain: str
    a: str  # the beginnings of the responses
    b: str
    preferences: list[int]


def queue(session: Session, project_id: int, after: Place | None, limit: int = PAGE) -> list[Queued]:
    """The next comparisons in review after a place."""
    said = select(func.array_agg(Judgment.preference)).where(
        Judgment.comparison_id == Comparison.id, Judgment.superseded_at.is_(None)
    )
    completion_a, completion_b = aliased(Completion), aliased(Completion)
    found = (
        select(
            Comparison.agreement,
            Comparison.id,
            Prompt.messages,
            Prompt.domain,
            func.left(completion_a.text, EXCERPT),
            func.left(completion_b.text, EXCERPT),
            said.scalar_subquery(),
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(completion_a, completion_a.id == Comparison.completion_a_id)
        .join(completion_b, completion_b.id == Comparison.completion_b_id)
        .where(Comparison.project_id == project_id, Comparison.state == "in_review")
        .order_by(Comparison.agreement, Comparison.id)
        .limit(limit)
    )
    if after is not None:
        place = tuple_(literal(after.agreement), literal(after.comparison_id))
        found = found.where(tuple_(Comparison.agreement, Comparison.id) > place)
    rows = session.execute(found)
    return [
        Queued(Place(agreement or 0.0, id_), messages, domain, a, b, sorted(preferences or []))
        for agreement, id_, messages, domain, a, b, preferences in rows
    ]


def waiting(session: Session, project_id: int) -> int:
    in_review = select(func.count()).where(Comparison.project_id == project_id, Comparison.state == "in_review")
    return session.scalar(in_review) or 0


class Response(NamedTuple):
    text: str
    source: str  # the model's name, or where it was imported from


class Case(NamedTuple):
    """A comparison with what a reviewer sees of it; reviewers are not blind."""

    comparison: Comparison
    prompt: Prompt
    rubric: Rubric
    a: Response
    b: Response


def case(session: Session, project_id: int, comparison_id: int) -> Case | None:
    completion_a, completion_b = aliased(Completion), aliased(Completion)
    model_a, model_b = aliased(ModelVersion), aliased(ModelVersion)
    found = (
        select(
            Comparison,
            Prompt,
            Rubric,
            completion_a.text,
            func.coalesce(model_a.name, completion_a.source),
            completion_b.text,
            func.coalesce(model_b.name, completion_b.source),
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .join(completion_a, completion_a.id == Comparison.completion_a_id)
        .join(completion_b, completion_b.id == Comparison.completion_b_id)
        .outerjoin(model_a, model_a.id == completion_a.model_version_id)
        .outerjoin(model_b, model_b.id == completion_b.model_version_id)
        .where(Comparison.id == comparison_id, Comparison.project_id == project_id)
    )
    row = session.execute(found).one_or_none()
    if row is None:
        return None
    comparison, prompt, rubric, text_a, source_a, text_b, source_b = row
    return Case(comparison, prompt, rubric, Response(text_a, source_a), Response(text_b, source_b))


class Said(NamedTuple):
    labeler: str
    kind: str
    preference: int
    rationale: str
    created_at: datetime
    duration_ms: int | None


def judgments(session: Session, comparison_id: int) -> list[Said]:
    """The live judgments, in the order they were given."""
    found = (
        select(User.name, User.kind, Judgment.preference, Judgment.rationale, Judgment.created_at, Judgment.duration_ms)
        .join(User, User.id == Judgment.labeler_id)
        .where(Judgment.comparison_id == comparison_id, Judgment.superseded_at.is_(None))
        .order_by(Judgment.created_at, Judgment.id)
    )
    return [Said(*row) for row in session.execute(found)]


class Verdict(NamedTuple):
    reviewer: str
    verdict: int
    note: str
    created_at: datetime


def verdict(session: Session, comparison_id: int) -> Verdict | None:
    found = (
        select(User.name, Adjudication.verdict, Adjudication.note, Adjudication.created_at)
        .join(User, User.id == Adjudication.reviewer_id)
        .where(Adjudication.comparison_id == comparison_id)
    )
    row = session.execute(found).one_or_none()
    return Verdict(*row) if row else None


def lock(session: Session, project_id: int, comparison_id: int) -> Comparison | None:
    """The comparison, locked until the transaction ends."""
    wanted = select(Comparison).where(Comparison.id == comparison_id, Comparison.project_id == project_id)
    return session.scalars(wanted.with_for_update(), execution_options={"populate_existing": True}).one_or_none()


def last_decision(session: Session, project_id: int, comparison_id: int) -> tuple[str, str] | None:
    """(action, who) of the last thing a reviewer did with a comparison."""
    found = (
        select(AuditEvent.action, User.name)
        .join(User, User.id == AuditEvent.actor_id)
        .where(AuditEvent.project_id == project_id, AuditEvent.action.startswith("review."))
        .where(AuditEvent.details["comparison_id"].astext == cast(literal(comparison_id), Text))
        .order_by(AuditEvent.id.desc())
        .limit(1)
    )
    row = session.execute(found).one_or_none()
    return (row[0], row[1]) if row else None
