"""SQL of the labeling queue.

Order of locks, so that nobody waits in a circle: the labeler's own row, then one comparison, then its leases. Only
these are waited for; whatever else is locked on the way is skipped when someone holds it.
"""

from collections.abc import Collection
from datetime import UTC, datetime, time, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Row,
    Select,
    any_,
    cast,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from app.labeling.claim_queries import MIXED_IN, judged_by, literally
from app.models import Comparison, Completion, Judgment, Lease, Prompt, Rubric, Run, User
from app.models.comparison import KEPT_FOR_GROUP, KEPT_FOR_LABELER

# An answer can be changed for so long, open or closed as its comparison may be, unless a new round reads it or a
# reviewer decides first.
CHANGEABLE_FOR = timedelta(hours=1)


class Position(NamedTuple):
    """A place in a project's queue, which is ordered by priority (highest first) and id."""

    priority: int
    comparison_id: int


class Task(NamedTuple):
    """A lease and all that its card shows.

    responses: texts in the order shown, two of a pair or all of a ranking.
    """

    lease_id: UUID
    position: Position
    messages: list[dict[str, str]]
    responses: list[str]
    rubric: Rubric
    is_ranking: bool = False


def lock_labeler(session: Session, labeler_id: int) -> None:
    """One thing at a time for each labeler: two tabs, or the two halves of a double click, follow each other."""
    session.execute(select(User.id).where(User.id == labeler_id).with_for_update(key_share=True))


def expire_leases(session: Session, limit: int = 200) -> int:
    """Ends leases past their time, of whatever project; returns how many.

    Their comparisons are locked first (a trigger will write to them), and both skipped where somebody holds them: that
    somebody is submitting, or expires them too.
    """
    overdue = _live().where(Lease.expires_at < func.now()).limit(limit)
    return _end(session, overdue, "expired")


def end_leases(session: Session, project_id: int, labeler_id: int) -> int:
    """Gives back what the labeler holds in this project, but what somebody else is busy with; returns how many."""
    own = _live().where(Lease.labeler_id == labeler_id, Comparison.project_id == project_id)
    return _end(session, own, "released")


def release_leases(session: Session, lease_ids: Collection[UUID]) -> int:
    """Gives tasks that were not looked at yet back to the queue; otherwise as `end_leases`."""
    return _end(session, _live().where(Lease.id.in_(lease_ids)), "released")


def _live() -> Select[UUID]:
    return select(Lease.id).join(Comparison, Comparison.id == Lease.comparison_id).where(Lease.state == "live")


def _end(session: Session, leases: Select[UUID], state: str) -> int:
    ids = session.scalars(leases.with_for_update(skip_locked=True)).all()
    if ids:
        ended = func.least(Lease.expires_at, func.now())
        session.execute(update(Lease).where(Lease.id.in_(ids)).values(state=state, expires_at=ended))
    return len(ids)


def renew_live_leases(session: Session, project_id: int, labeler_id: int, lasting: timedelta) -> list[UUID]:
    """The leases that the labeler holds in this project, oldest first, made to last again from now on."""
    own = update(Lease).where(Lease.labeler_id == labeler_id, Lease.state == "live")
    own = own.where(Lease.comparison_id == Comparison.id, Comparison.project_id == project_id)
    renewed = own.where(Comparison.state == "open").values(expires_at=func.now() + lasting)
    rows = session.execute(
        renewed.returning(Lease.created_at, Lease.id), execution_options={"synchronize_session": False}
    )
    return [row.id for row in sorted(rows, key=lambda row: row.created_at)]


def add_lease(
    session: Session, labeler_id: int, lasting: timedelta, *, comparison_id: int, swapped: bool, shown: list[int] | None
) -> UUID:
    """A lease for whoever is given the comparison. One that they had, which ran out or went back unanswered, lives
    again with its sides as they were: their draft is kept by its id."""
    own = Lease.comparison_id == comparison_id, Lease.labeler_id == labeler_id
    before = select(Lease.id).where(*own, Lease.state.in_(("expired", "released")))
    newest = before.order_by(Lease.created_at.desc()).limit(1).scalar_subquery()
    again = update(Lease).where(Lease.id == newest)
    again = again.values(state="live", created_at=func.now(), expires_at=func.now() + lasting).returning(Lease.id)
    if lease_id := session.scalar(again, execution_options={"synchronize_session": False}):
        return lease_id
    values = {"comparison_id": comparison_id, "labeler_id": labeler_id, "swapped": swapped, "shown": shown}
    fresh = insert(Lease).values(expires_at=func.now() + lasting, **values).returning(Lease.id)
    return session.execute(fresh).scalar_one()


def ranked_completions(session: Session, ranking_id: int) -> list[int]:
    """Ids of the completions that a ranking puts in order."""
    pairs = select(Comparison.completion_a_id, Comparison.completion_b_id).where(Comparison.ranking_id == ranking_id)
    return sorted({completion_id for pair in session.execute(pairs) for completion_id in pair})


def task(session: Session, lease_id: UUID) -> Task:
    row = session.execute(
        select(Lease.swapped, Lease.shown, Comparison, Prompt.messages, Rubric)
        .join(Comparison, Comparison.id == Lease.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .where(Lease.id == lease_id)
    ).one()
    comparison: Comparison = row.Comparison
    pair = [comparison.completion_a_id, comparison.completion_b_id]
    shown = row.shown or (pair[::-1] if row.swapped else pair)
    texts = dict(session.execute(select(Completion.id, Completion.text).where(Completion.id.in_(shown))).all())
    position = Position(comparison.priority, comparison.id)
    responses = [texts[completion_id] for completion_id in shown]
    return Task(lease_id, position, row.messages, responses, row.Rubric, comparison.ranking_id is not None)


def judgment_by_key(session: Session, idempotency_key: UUID) -> Judgment | None:
    return session.scalars(select(Judgment).where(Judgment.idempotency_key == idempotency_key)).one_or_none()


def live_judgment(session: Session, comparison_id: int, labeler_id: int) -> Judgment | None:
    return session.scalars(
        select(Judgment).where(
            Judgment.comparison_id == comparison_id,
            Judgment.labeler_id == labeler_id,
            Judgment.superseded_at.is_(None),
        )
    ).one_or_none()


def find_lease(session: Session, project_id: int, lease_id: UUID) -> Lease | None:
    of_project = Lease.comparison_id.in_(select(Comparison.id).where(Comparison.project_id == project_id))
    return session.scalars(select(Lease).where(Lease.id == lease_id, of_project)).one_or_none()


def lock_comparison(session: Session, comparison_id: int) -> Comparison:
    locked = select(Comparison).where(Comparison.id == comparison_id).with_for_update()
    return session.scalars(locked, execution_options={"populate_existing": True}).one()


def lock_leases(session: Session, comparison_id: int, labeler_id: int) -> list[Row[Lease, int]]:
    """The labeler's leases on a comparison, with the milliseconds since each was given out."""
    age = cast(func.extract("epoch", func.now() - Lease.created_at) * 1000, Lease.comparison_id.type)
    own = select(Lease, age).where(Lease.comparison_id == comparison_id, Lease.labeler_id == labeler_id)
    return list(session.execute(own.with_for_update(), execution_options={"populate_existing": True}).all())


def judged_today(session: Session, labeler_id: int) -> int:
    """The labeler's answers in all projects since midnight, UTC; a ranking is one answer."""
    mine = select(func.count(Judgment.id)).where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None))
    offered = mine.join(Comparison, Comparison.id == Judgment.comparison_id).where(Comparison.offered)
    return session.scalar(offered.where(Judgment.created_at >= _midnight())) or 0


def _midnight() -> datetime:
    return datetime.combine(datetime.now(UTC).date(), time(), UTC)


class Held(NamedTuple):
    """Tasks that a labeler has on the desk, or ready to follow; and those of them that are not mixed in."""

    tasks: int
    of_queues: int


_again = aliased(Lease)


def today(now: datetime) -> datetime:
    """Since when tasks are counted that were done: the last midnight, UTC, before which no answer can be changed. If an
    answer of yesterday could be taken back today, what is left would say whether it was to a task of the queue."""
    return datetime.combine((now - CHANGEABLE_FOR).date(), time(), UTC)


def _skipped_before(comparison_id: InstrumentedAttribute[int], labeler_id: int, since: datetime) -> ColumnElement[bool]:
    own = _again.comparison_id == comparison_id, _again.labeler_id == labeler_id
    return exists().where(*own, _again.state == "skipped", _again.expires_at < since)


def held(session: Session, project_id: int, labeler_id: int, since: datetime) -> Held:
    """See `beside_queues` for what was skipped before that moment: it does not count among those of the queues."""
    of_queues = ~MIXED_IN & ~_skipped_before(Lease.comparison_id, labeler_id, since)
    counts = select(func.count(), func.count().filter(of_queues)).select_from(Lease)
    own = counts.join(Comparison, Comparison.id == Lease.comparison_id)
    own = own.where(Lease.labeler_id == labeler_id, Lease.state == "live", Comparison.project_id == project_id)
    return Held(*session.execute(own.where(Comparison.state == "open")).one())


def beside_queues(session: Session, project_id: int, labeler_id: int, since: datetime) -> int:
    """How many tasks the labeler has answered or skipped since a moment that were not counted among those left then:
    what was mixed in, and what they had skipped before it."""
    said = Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None), Judgment.created_at >= since
    is_held = exists().where(
        _again.comparison_id == Lease.comparison_id, _again.labeler_id == labeler_id, _again.state == "live"
    )
    answered = select(Judgment.comparison_id).where(*said, Judgment.lease_id.is_not(None))
    skipped = select(Lease.comparison_id).where(
        Lease.labeler_id == labeler_id, Lease.state == "skipped", Lease.expires_at >= since, ~is_held
    )
    done = union(answered, skipped).subquery()
    counted = select(func.count()).join(Comparison, Comparison.id == done.c.comparison_id).select_from(done)
    beside = MIXED_IN | _skipped_before(Comparison.id, labeler_id, since)
    return session.scalar(counted.where(Comparison.project_id == project_id, Comparison.offered, beside)) or 0


class Waiting(NamedTuple):
    """Whether a project holds any comparison; of those that this labeler has not judged, one with room that is kept for
    others, and one on somebody else's desk that could come back to them.

    Nothing of what they have judged: whether that is still open tells, where overlap adapts, how others answered.
    """

    any: bool
    kept: bool
    taken: bool


def waiting(session: Session, project_id: int, labeler_id: int, groups: list[int]) -> Waiting:
    of_project = Comparison.project_id == project_id
    own_groups = Comparison.group_id == any_(literal(groups, ARRAY(BigInteger)))
    others = Comparison.labeler_id != labeler_id
    kept = or_(
        exists().where(of_project, ~own_groups, literally(KEPT_FOR_GROUP)),
        exists().where(of_project, others, Comparison.purpose != "repeat", literally(KEPT_FOR_LABELER)),
    )
    # Found by the live leases, of which there are few.
    taken = exists().where(
        Lease.state == "live",
        Lease.labeler_id != labeler_id,
        Lease.comparison_id == Comparison.id,
        of_project,
        Comparison.state == "open",
        Comparison.gold.is_(None),
        or_(Comparison.labeler_id.is_(None), ~others),
        or_(Comparison.group_id.is_(None), own_groups),
        ~judged_by(labeler_id),
    )
    return Waiting(*session.execute(select(exists().where(of_project), kept, taken)).one())


def sampling(session: Session, project_id: int) -> tuple[int, int] | None:
    """(done, total) of the sampling that will bring new comparisons, or none."""
    waiting = Run.project_id == project_id, Run.kind == "sample", Run.state.in_(("queued", "running"))
    sums = select(func.count(), func.sum(Run.progress_done), func.sum(Run.progress_total)).where(*waiting)
    runs, done, total = session.execute(sums).one()
    return (int(done), int(total)) if runs else None
