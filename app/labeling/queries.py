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
    Double,
    Row,
    Select,
    and_,
    any_,
    case,
    cast,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from app.models import Comparison, Completion, Judgment, Lease, Project, Prompt, Rubric, Run, User


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

    @property
    def first(self) -> str:
        return self.responses[0]

    @property
    def second(self) -> str:
        return self.responses[1]


# Literally the predicate of ix_comparison_available: only then does the planner use it.
AVAILABLE = text(
    "comparison.state = 'open' AND comparison.offered"
    " AND comparison.judgment_count + comparison.lease_count < comparison.overlap"
    " AND comparison.labeler_id IS NULL AND comparison.group_id IS NULL"
)


def _not_seen_by(labeler_id: int) -> ColumnElement[bool]:
    """Comparisons that the labeler has neither judged (also when that was superseded) nor on the desk now."""
    judged = exists().where(Judgment.comparison_id == Comparison.id, Judgment.labeler_id == labeler_id)
    leased = exists().where(Lease.comparison_id == Comparison.id, Lease.labeler_id == labeler_id, Lease.state == "live")
    return and_(~judged, ~leased)


def _available(project_id: int, labeler_id: int) -> Select[int]:
    return select(Comparison.id).where(Comparison.project_id == project_id, AVAILABLE, _not_seen_by(labeler_id))


def lock_labeler(session: Session, labeler_id: int) -> None:
    """One thing at a time for each labeler: two tabs, or the two halves of a double click, follow each other."""
    session.execute(select(User.id).where(User.id == labeler_id).with_for_update(key_share=True))


def expire_leases(session: Session, limit: int = 200) -> int:
    """Ends leases past their time, of whatever project; returns how many.

    Their comparisons are locked first (a trigger will write to them), and both skipped where somebody holds them: that
    somebody is submitting, or expires them too.
    """
    overdue = (
        select(Lease.id)
        .join(Comparison, Comparison.id == Lease.comparison_id)
        .where(Lease.state == "live", Lease.expires_at < func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = session.scalars(overdue).all()
    if ids:
        session.execute(update(Lease).where(Lease.id.in_(ids)).values(state="expired"))
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


def last_judged(session: Session, project_id: int, labeler_id: int) -> Position | None:
    """Where in the project's queue the labeler last judged; none if that was in another project or never."""
    last = (
        select(Comparison.project_id, Comparison.priority, Comparison.id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Judgment.labeler_id == labeler_id)
        .order_by(Judgment.created_at.desc())
        .limit(1)
    )
    row = session.execute(last).one_or_none()
    return Position(row.priority, row.id) if row and row.project_id == project_id else None


def _stretches(after: Position | None) -> list[list[ColumnElement[bool]]]:
    """The parts of the queue in the order they are searched.

    A labeler leaves behind comparisons that wait for other people and stay available. Beginning after the last one
    judged (and with what is more urgent) steps over them instead of looking at each; the whole queue comes last.
    """
    if after is None:
        return [[]]
    more_urgent: list[ColumnElement[bool]] = [Comparison.priority > after.priority]
    ahead: list[ColumnElement[bool]] = [Comparison.priority == after.priority, Comparison.id > after.comparison_id]
    return [more_urgent, ahead, []]


def claim(
    session: Session, project_id: int, labeler_id: int, *, after: Position | None = None, except_id: int | None = None
) -> int | None:
    """Locks the next comparison that this labeler can judge and returns its id.

    None: there is none now, or others are taking the last ones at this very moment.
    """
    for stretch in _stretches(after):
        chosen = _available(project_id, labeler_id).where(*stretch)
        if except_id is not None:
            chosen = chosen.where(Comparison.id != except_id)
        chosen = chosen.order_by(Comparison.priority.desc(), Comparison.id).limit(1)
        found = session.scalar(chosen.with_for_update(skip_locked=True, of=Comparison))
        if found is not None:
            return found
    return None


def claim_one(session: Session, project_id: int, labeler_id: int, comparison_id: int) -> int | None:
    """Locks that comparison, if this labeler can judge it."""
    chosen = _available(project_id, labeler_id).where(Comparison.id == comparison_id)
    return session.scalar(chosen.with_for_update(skip_locked=True, of=Comparison))


def add_lease(session: Session, comparison_id: int, labeler_id: int, swapped: bool, lasting: timedelta) -> UUID:
    values = {"comparison_id": comparison_id, "labeler_id": labeler_id, "swapped": swapped}
    fresh = insert(Lease).values(expires_at=func.now() + lasting, **values).returning(Lease.id)
    return session.execute(fresh).scalar_one()


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


def lease_on(session: Session, lease_id: UUID, labeler_id: int) -> tuple[int, bool] | None:
    """(comparison, swapped) of a lease this labeler has or had."""
    own = select(Lease.comparison_id, Lease.swapped).where(Lease.id == lease_id, Lease.labeler_id == labeler_id)
    row = session.execute(own).one_or_none()
    return (row.comparison_id, row.swapped) if row else None


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


def settle(session: Session, comparison_ids: Collection[int]) -> int:
    """Of these comparisons, settles or sends to review the open ones that have all their judgments; returns how many.

    Agreement is the share of pairs of judgments on the same side (A, tie, B); none with a single judgment. Comparisons
    already loaded in the session are not refreshed.
    """
    ids = literal(list(comparison_ids), ARRAY(BigInteger))  # one parameter, however many
    on_side = [func.count().filter(func.sign(Judgment.preference) == side) for side in (-1, 0, 1)]
    agreeing = sum((n * (n - 1) for n in on_side), start=literal(0))
    judged = (
        select(
            Judgment.comparison_id,
            cast(func.avg(Judgment.preference), Double).label("consensus"),
            (cast(agreeing, Double) / func.nullif(func.count() * (func.count() - 1), 0)).label("agreement"),
        )
        .where(Judgment.comparison_id == any_(ids), Judgment.superseded_at.is_(None))
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    is_split = func.coalesce(judged.c.agreement, 1.0) < Project.review_threshold
    settled = session.execute(
        update(Comparison)
        .where(Comparison.id == judged.c.comparison_id, Comparison.project_id == Project.id)
        .where(Comparison.state == "open", Comparison.judgment_count >= Comparison.overlap)
        .values(
            state=case((is_split, "in_review"), else_="settled"),
            settled_at=case((is_split, None), else_=func.now()),
            agreement=judged.c.agreement,
            consensus=judged.c.consensus,
        )
        .execution_options(synchronize_session=False)
        .returning(Comparison.id)
    )
    return len(settled.all())


def judged_today(session: Session, labeler_id: int) -> int:
    """The labeler's answers in all projects since midnight, UTC; a ranking is one answer."""
    midnight = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    mine = select(func.count(Judgment.id)).where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None))
    offered = mine.join(Comparison, Comparison.id == Judgment.comparison_id).where(Comparison.offered)
    return session.scalar(offered.where(Judgment.created_at >= midnight)) or 0


def held(session: Session, project_id: int, labeler_id: int) -> int:
    """How many tasks the labeler has on the desk, or ready to follow."""
    own = select(func.count()).select_from(Lease).join(Comparison, Comparison.id == Lease.comparison_id)
    own = own.where(Lease.labeler_id == labeler_id, Lease.state == "live", Comparison.project_id == project_id)
    return session.scalar(own.where(Comparison.state == "open")) or 0


def remaining(session: Session, project_id: int, labeler_id: int, after: Position | None, limit: int) -> int:
    """How many more comparisons this labeler could be given now, counted up to `limit`.

    Stops as soon as one stretch of the queue fills the limit, so that a long queue costs no more than a short one.
    """
    count = 0
    for stretch in _stretches(after):
        some = _available(project_id, labeler_id).where(*stretch).limit(limit).subquery()
        count = max(count, session.scalar(select(func.count()).select_from(some)) or 0)
        if count >= limit:
            break
    return count


def open_counts(session: Session, project_id: int) -> tuple[bool, bool, bool]:
    """Whether the project has any comparison, an open one, and one with room for another judgment."""
    some = exists().where(Comparison.project_id == project_id)
    is_open = exists().where(Comparison.project_id == project_id, Comparison.state == "open")
    has_room = exists().where(Comparison.project_id == project_id, AVAILABLE)
    row = session.execute(select(some, is_open, has_room)).one()
    return row[0], row[1], row[2]


def is_available(session: Session, project_id: int, labeler_id: int, *, except_id: int | None) -> bool:
    left = _available(project_id, labeler_id)
    if except_id is not None:
        left = left.where(Comparison.id != except_id)
    return session.scalar(left.limit(1)) is not None


def sampling(session: Session, project_id: int) -> tuple[int, int] | None:
    """(done, total) of the sampling that will bring new comparisons, or none."""
    waiting = Run.project_id == project_id, Run.kind == "sample", Run.state.in_(("queued", "running"))
    sums = select(func.count(), func.sum(Run.progress_done), func.sum(Run.progress_total)).where(*waiting)
    runs, done, total = session.execute(sums).one()
    return (int(done), int(total)) if runs else None


def project_with_work(session: Session, labeler_id: int) -> str | None:
    """Slug of a project that has a task for this labeler: a card on the desk first, then the one judged in last."""
    on_desk = exists().where(
        Lease.labeler_id == labeler_id, Lease.state == "live", Lease.comparison_id == Comparison.id
    )
    waiting = exists().where(Comparison.project_id == Project.id, AVAILABLE, _not_seen_by(labeler_id))
    held = exists().where(Comparison.project_id == Project.id, Comparison.state == "open", on_desk)
    last = (
        select(Comparison.project_id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Judgment.labeler_id == labeler_id)
        .order_by(Judgment.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    with_work = select(Project.slug).where(or_(waiting, held))
    order = (held.desc(), (Project.id == func.coalesce(last, 0)).desc(), Project.id)
    return session.scalar(with_work.order_by(*order).limit(1))
