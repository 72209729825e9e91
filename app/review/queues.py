"""SQL of the review queues. Each queue is read through an index that holds exactly its rows.

A page costs the same however long the queue is, and counts stop at `COUNT_LIMIT`. A filter scans the queue in order
until a page is full.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Float,
    Select,
    Text,
    any_,
    func,
    literal,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import Session, aliased

from app.db import among
from app.models import AuditEvent, Comparison, Completion, Judgment, Prompt, Rubric, User
from app.models.comparison import (
    IN_CONFLICT,
    IN_DISAGREEMENT,
    IS_FLAGGED,
    IS_REQUESTED,
    LEAST_AGREED,
    SUREST_CONFLICT,
)
from app.review.forms import QueueName, Wanted

PAGE = 50
EXCERPT = 160  # characters
COUNT_LIMIT = 1_000
# The comparison that an audit event is about; must be literally the expression of ix_audit_event_comparison.
about = literal_column("(audit_event.details ->> 'comparison_id')", Text)


class Place(NamedTuple):
    """A place in a queue, which is ordered by key, then id. The key is 0 if the queue is ordered by id alone."""

    key: float
    comparison_id: int


class Queue(NamedTuple):
    """condition, key: literally as in the queue's index, or the planner would not use it. key_of: the same key in
    Python."""

    condition: str
    key: str | None
    key_of: Callable[[Comparison], float]


def _doubt(comparison: Comparison) -> float:
    p = comparison.reward_p_b
    return 0.0 if p is None else comparison.reward_trained + min(p, 1 - p)


QUEUES: dict[QueueName, Queue] = {
    "disagreement": Queue(IN_DISAGREEMENT, LEAST_AGREED, lambda comparison: comparison.agreement or 0.0),
    "conflict": Queue(IN_CONFLICT, SUREST_CONFLICT, _doubt),
    "flagged": Queue(IS_FLAGGED, None, lambda _comparison: 0.0),
    "requested": Queue(IS_REQUESTED, None, lambda _comparison: 0.0),
}


def place_of(queue: QueueName, comparison: Comparison) -> Place:
    return Place(QUEUES[queue].key_of(comparison), comparison.id)


def waiting(session: Session, project_id: int) -> dict[QueueName, int]:
    """Count the comparisons in each queue, up to `COUNT_LIMIT`."""
    counts = []
    for queue in QUEUES.values():
        some = select(Comparison.id).where(Comparison.project_id == project_id, text(queue.condition))
        counts.append(select(func.count()).select_from(some.limit(COUNT_LIMIT).subquery()).scalar_subquery())
    return dict(zip(QUEUES, session.execute(select(*counts)).one(), strict=True))


def _ids(project_id: int, wanted: Wanted, after: Place | None) -> Select[int]:
    """Select ids in the queue's order, after a place."""
    queue = QUEUES[wanted.queue]
    found = select(Comparison.id).where(Comparison.project_id == project_id, text(queue.condition))
    order: list[ColumnElement[Any]] = [Comparison.id.expression]
    place: list[ColumnElement[Any]] = [literal(after.comparison_id, BigInteger)] if after else []
    if queue.key is not None:
        order.insert(0, literal_column(f"({queue.key})", Float))
        place.insert(0, literal(after.key if after else 0.0, Float))
    if after is not None:
        found = found.where(tuple_(*order) > tuple_(*place))
    if wanted.slice:
        name, _, value = wanted.slice.partition("=")
        if name == "purpose":
            found = found.where(Comparison.purpose == value)
        else:
            found = found.join(Prompt, Prompt.id == Comparison.prompt_id).where(getattr(Prompt, name) == value)
    if wanted.version:
        of_version = select(Rubric.id).where(Rubric.project_id == project_id, Rubric.version == int(wanted.version))
        found = found.where(Comparison.rubric_id == of_version.scalar_subquery())
    return found.order_by(*order)


def next_id(session: Session, project_id: int, wanted: Wanted, after: Place | None) -> int | None:
    return session.scalar(_ids(project_id, wanted, after).limit(1))


class Answer(NamedTuple):
    """The parts of a live judgment that the queues show."""

    preference: int | None
    both_bad: bool
    flags: list[str]
    labeler: str
    kind: str


class Queued(NamedTuple):
    """A comparison in a queue, with its texts shortened; who requested the review and why, if somebody did."""

    comparison: Comparison
    prompt: str  # its last turn
    a: str
    b: str
    domain: str
    answers: list[Answer]
    requested_by: str
    request: str


def page(session: Session, project_id: int, wanted: Wanted, after: Place | None, limit: int = PAGE) -> list[Queued]:
    """Return the next comparisons of a queue after a place."""
    ids = list(session.scalars(_ids(project_id, wanted, after).limit(limit)))
    a, b = aliased(Completion), aliased(Completion)
    texts = (func.left(each, EXCERPT) for each in (Prompt.messages[-1]["content"].astext, a.text, b.text))
    found = (
        select(Comparison, Prompt.domain, *texts)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .where(among(Comparison.id, ids))
    )
    rows = {row[0].id: row for row in session.execute(found)}
    answers = _answers(session, ids)
    requests = _requests(session, ids) if wanted.queue == "requested" else {}
    # A comparison decided between the two reads is still shown; opening it shows its new state.
    queued = []
    for id_ in ids:
        comparison, domain, prompt, text_a, text_b = rows[id_]
        queued.append(Queued(comparison, prompt, text_a, text_b, domain, answers[id_], *requests.get(id_, ("", ""))))
    return queued


def _answers(session: Session, ids: list[int]) -> dict[int, list[Answer]]:
    found = (
        select(Judgment.comparison_id, Judgment.preference, Judgment.both_bad, Judgment.flags, User.name, User.kind)
        .join(User, User.id == Judgment.labeler_id)
        .where(among(Judgment.comparison_id, ids), Judgment.superseded_at.is_(None))
        .order_by(Judgment.id)
    )
    answers: dict[int, list[Answer]] = defaultdict(list)
    for id_, *answer in session.execute(found):
        answers[id_].append(Answer(*answer))
    return answers


def _requests(session: Session, ids: list[int]) -> dict[int, tuple[str, str]]:
    """Return (who, why) of the newest request for each comparison."""
    found = (
        select(about, User.name, AuditEvent.details["note"].astext)
        .join(User, User.id == AuditEvent.actor_id)
        .where(about == any_(literal([str(id_) for id_ in ids], ARRAY(Text))), AuditEvent.action == "review.requested")
        .order_by(AuditEvent.id)
    )
    return {int(id_): (name, note or "") for id_, name, note in session.execute(found)}
