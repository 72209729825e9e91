"""SQL of the labeling queue.

Locks are taken in one order so that transactions cannot deadlock: the labeler's own row, then one comparison, then its
leases. Only these locks are waited for; other locked rows are skipped.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    CompoundSelect,
    DateTime,
    Interval,
    Row,
    Select,
    Uuid,
    any_,
    bindparam,
    column,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from app.db import prepared
from app.labeling.claim_queries import COUNT_KEPT, LABELER, PROJECT, STANDING, Place, Standing, standing_in
from app.labeling.conditions import MIXED_IN, is_whole_answer, judged_by, literally
from app.models import Comparison, Completion, Judgment, Lease, Prompt, QueuePlace, Rubric, Run
from app.models.comparison import KEPT_FOR_GROUP, KEPT_FOR_LABELER

# An answer can be changed for this long, whether its comparison is open or closed, unless a new round reads it or a
# reviewer decides first.
CHANGEABLE_FOR = timedelta(hours=1)
AT_ONCE = 200  # leases ended in one statement


class Position(NamedTuple):
    """A place in a project's queue, which is ordered by priority (highest first) and id."""

    priority: int
    comparison_id: int


class Task(NamedTuple):
    """A lease and all that its card shows.

    responses: texts in the order shown, two for a pair or all of a ranking. is_new: the labeler was never given it
    before, so there is no earlier answer.
    """

    lease_id: UUID
    position: Position
    messages: list[dict[str, str]]
    responses: list[str]
    rubric: Rubric
    is_ranking: bool = False
    is_new: bool = False


class Leased(NamedTuple):
    """A lease that was given, and whether the labeler had it before."""

    lease_id: UUID
    again: bool


def end_leases(session: Session, project_id: int, labeler_id: int) -> int:
    """Give back the tasks that the labeler holds in this project, except rows locked by others; return how many."""
    own = _live().where(Lease.labeler_id == labeler_id, Comparison.project_id == project_id)
    return _end(session, own, "released")


def release_leases(session: Session, lease_ids: Collection[UUID]) -> int:
    """Give tasks that were not looked at yet back to the queue; otherwise like `end_leases`."""
    return _end(session, _live().where(Lease.id.in_(lease_ids)), "released")


def _live() -> Select[UUID]:
    return select(Lease.id).join(Comparison, Comparison.id == Lease.comparison_id).where(Lease.state == "live")


def _end(session: Session, leases: Select[UUID], state: str) -> int:
    ids = session.scalars(leases.with_for_update(skip_locked=True, key_share=True)).all()
    if ids:
        ended = func.least(Lease.expires_at, func.now())
        session.execute(update(Lease).where(Lease.id.in_(ids)).values(state=state, expires_at=ended))
    return len(ids)


def _renew() -> Select[datetime, int, UUID]:
    others = _live().where(Lease.expires_at < func.now(), Lease.labeler_id != LABELER).limit(AT_ONCE)
    overdue = others.with_for_update(skip_locked=True, key_share=True).cte("overdue")
    ended = update(Lease).where(Lease.id == overdue.c.id).values(state="expired").returning(Lease.id).cte("ended")
    own = _live().where(Lease.labeler_id == LABELER, Comparison.project_id == PROJECT, Comparison.state == "open")
    own = own.add_columns(Lease.created_at, Lease.comparison_id, Lease.expires_at)
    held = own.with_for_update(key_share=True, skip_locked=True, of=Lease).cte("held")
    until = func.now() + _LASTING
    # Only once per transaction: if the transaction has changed the row before, PostgreSQL also waits for a comparison
    # lock.
    renewed = update(Lease).where(Lease.id == held.c.id, held.c.expires_at != until).values(expires_at=until)
    renewed_ids = renewed.returning(Lease.id).cte("renewed")
    return select(held.c.created_at, held.c.comparison_id, held.c.id).add_cte(ended, renewed_ids)


_LASTING = bindparam("lasting", type_=Interval)
_RENEW = prepared(_renew())


def renew_live_leases(session: Session, project_id: int, labeler_id: int, lasting: timedelta) -> list[UUID]:
    """Extend the labeler's leases in this project from now on; return them, oldest first.

    Also end expired leases of other labelers, in any project. Their comparisons are locked first, because a trigger
    writes to them. Rows that somebody else has locked are skipped, because that transaction is submitting or ending
    them. The labeler's own leases are skipped too if somebody is ending them now. The caller must not wait for a
    comparison afterwards: two labelers whose time ran out would wait for each other.
    """
    values = {"in_project": project_id, "for_labeler": labeler_id, "lasting": lasting}
    rows = session.execute(_RENEW, values)
    # Two leases given in one transaction have the same time.
    return [row.id for row in sorted(rows, key=lambda row: (row.created_at, row.comparison_id))]


_PLACE_COLUMNS = ("group_id", *Place._fields)


def _save_places() -> Insert:
    reached = (
        func.jsonb_to_recordset(bindparam("places", type_=JSONB))
        .table_valued(*(column(name, BigInteger) for name in _PLACE_COLUMNS), name="reached")
        .render_derived(with_types=True)
    )
    key = {"labeler_id": LABELER, "project_id": PROJECT}
    kept = insert(QueuePlace).from_select(
        [*key, *_PLACE_COLUMNS], select(*key.values(), *reached.c), include_defaults=False
    )
    new = {name: kept.excluded[name] for name in _PLACE_COLUMNS[1:]}
    return kept.on_conflict_do_update(index_elements=[*key, "group_id"], set_=new)


def _lease_statement() -> CompoundSelect[Any]:
    """Lease a comparison and save the labeler's places, in one statement."""
    comparison_id = bindparam("leased_id", type_=BigInteger)
    until = func.now() + _LASTING
    before = select(Lease.id).where(Lease.comparison_id == comparison_id, Lease.labeler_id == LABELER)
    before = before.where(Lease.state.in_(("expired", "released"))).order_by(Lease.created_at.desc()).limit(1)
    revived = update(Lease).where(Lease.id == before.scalar_subquery())
    revived = revived.values(state="live", created_at=func.now(), expires_at=until)
    again = revived.returning(Lease.id).cte("again")
    shown = bindparam("is_swapped", type_=Boolean), bindparam("in_order", type_=JSONB(none_as_null=True))
    new = select(comparison_id, LABELER, *shown, until).where(~exists(select(again.c.id)))
    columns = Lease.comparison_id, Lease.labeler_id, Lease.swapped, Lease.shown, Lease.expires_at
    fresh = insert(Lease).from_select(columns, new, include_defaults=False).returning(Lease.id).cte("fresh")
    places = _save_places().returning(QueuePlace.id).cte("places")
    given: CompoundSelect[Any] = union_all(select(again.c.id, true()), select(fresh.c.id, false()))
    return given.add_cte(places)


_SAVE_PLACES, _LEASE = prepared(_save_places()), prepared(_lease_statement())


def save_places(session: Session, project_id: int, labeler_id: int, places: Mapping[int | None, Place]) -> None:
    """Save the labeler's places in the project's queues, by group; None is the open queue."""
    values = {"in_project": project_id, "for_labeler": labeler_id, "places": _rows(places)}
    session.execute(_SAVE_PLACES, values, execution_options={"dml_strategy": "raw"})


def _rows(places: Mapping[int | None, Place]) -> list[dict[str, int | None]]:
    return [{"group_id": group_id} | place._asdict() for group_id, place in places.items()]


def add_lease(
    session: Session,
    project_id: int,
    labeler_id: int,
    lasting: timedelta,
    places: Mapping[int | None, Place],
    *,
    comparison_id: int,
    swapped: bool,
    shown: list[int] | None,
) -> Leased:
    """Lease the comparison to the labeler.

    If an earlier lease of theirs expired or went back unanswered, it is revived with its sides, because the browser
    keeps drafts by lease id.

    Args:
        places: as for `save_places`.
    """
    values: dict[str, Any] = {"leased_id": comparison_id, "is_swapped": swapped, "in_order": shown}
    values |= {"in_project": project_id, "for_labeler": labeler_id, "lasting": lasting, "places": _rows(places)}
    return Leased(*session.execute(_LEASE, values).one())


def ranked_completions(session: Session, ranking_id: int) -> list[int]:
    """Return ids of the completions in a ranking."""
    pairs = select(Comparison.completion_a_id, Comparison.completion_b_id).where(Comparison.ranking_id == ranking_id)
    return sorted({completion_id for pair in session.execute(pairs) for completion_id in pair})


_a, _b = aliased(Completion), aliased(Completion)
_CARD = prepared(
    select(Lease.swapped, Lease.shown, Comparison.id, Comparison.priority, Comparison.ranking_id)
    .add_columns(Prompt.messages, Rubric, _a.text.label("a"), _b.text.label("b"))
    .join(Comparison, Comparison.id == Lease.comparison_id)
    .join(Prompt, Prompt.id == Comparison.prompt_id)
    .join(Rubric, Rubric.id == Comparison.rubric_id)
    .join(_a, _a.id == Comparison.completion_a_id)
    .join(_b, _b.id == Comparison.completion_b_id)
    .where(Lease.id == bindparam("lease_id", type_=Uuid))
)


def task(session: Session, lease_id: UUID) -> Task:
    row = session.execute(_CARD, {"lease_id": lease_id}).one()
    responses = [row.b, row.a] if row.swapped else [row.a, row.b]
    if row.shown:
        of_ranking = select(Completion.id, Completion.text).where(Completion.id.in_(row.shown))
        texts = dict(session.execute(of_ranking).all())
        responses = [texts[completion_id] for completion_id in row.shown]
    position = Position(row.priority, row.id)
    return Task(lease_id, position, row.messages, responses, row.Rubric, row.ranking_id is not None)


def lock_leased(session: Session, project_id: int, lease_id: UUID) -> Row[Lease, Comparison] | None:
    """Return a lease of the project and its comparison, locked."""
    leased = select(Lease, Comparison).join(Comparison, Comparison.id == Lease.comparison_id)
    leased = leased.where(Lease.id == lease_id, Comparison.project_id == project_id)
    leased = leased.with_for_update(of=Comparison, key_share=True)
    return session.execute(leased, execution_options={"populate_existing": True}).one_or_none()


def lock_comparison(session: Session, comparison_id: int) -> Comparison:
    locked = select(Comparison).where(Comparison.id == comparison_id).with_for_update(key_share=True)
    return session.scalars(locked, execution_options={"populate_existing": True}).one()


class Numbers(NamedTuple):
    """The counts behind a labeler's progress.

    done: their answers in the project since midnight, UTC; a ranking is one answer. held: tasks on the desk or
    preloaded. of_queues: held tasks that are not mixed in. kept: tasks kept for them by name, up to a limit.
    beside: see `_beside_queues`; 0 if the project mixes nothing in.
    """

    done: int
    held: int
    of_queues: int
    kept: int
    beside: int


_again = aliased(Lease)


def today(now: datetime) -> datetime:
    """Return the midnight, UTC, since which done tasks are counted: the last one before which no answer can be changed.

    If labelers could take back an answer of yesterday today, the number left would reveal whether it was to a queued
    task.
    """
    return datetime.combine((now - CHANGEABLE_FOR).date(), time(), UTC)


_SINCE = bindparam("since", type_=DateTime(timezone=True))


def _skipped_before(comparison_id: InstrumentedAttribute[int]) -> ColumnElement[bool]:
    own = _again.comparison_id == comparison_id, _again.labeler_id == LABELER
    return exists().where(*own, _again.state == "skipped", _again.expires_at < _SINCE)


def _done() -> Select[int]:
    midnight = bindparam("midnight", type_=DateTime(timezone=True))
    mine = select(func.count(Judgment.id)).where(Judgment.labeler_id == LABELER, Judgment.superseded_at.is_(None))
    answers = mine.join(Comparison, Comparison.id == Judgment.comparison_id).where(is_whole_answer())
    return answers.where(Judgment.created_at >= midnight, Comparison.project_id == PROJECT)


def _held(*conditions: ColumnElement[bool]) -> Select[int]:
    own = select(func.count()).select_from(Lease).join(Comparison, Comparison.id == Lease.comparison_id)
    own = own.where(Lease.labeler_id == LABELER, Lease.state == "live", Comparison.project_id == PROJECT)
    return own.where(Comparison.state == "open", *conditions)


def _beside_queues() -> Select[int]:
    """Count tasks done since a moment that were not in the count of tasks left at that moment.

    These are tasks that were mixed in, and tasks that the labeler had skipped before then.
    """
    said = Judgment.labeler_id == LABELER, Judgment.superseded_at.is_(None), Judgment.created_at >= _SINCE
    is_held = exists().where(
        _again.comparison_id == Lease.comparison_id, _again.labeler_id == LABELER, _again.state == "live"
    )
    answered = select(Judgment.comparison_id).where(*said, Judgment.lease_id.is_not(None))
    skipped = select(Lease.comparison_id).where(
        Lease.labeler_id == LABELER, Lease.state == "skipped", Lease.expires_at >= _SINCE, ~is_held
    )
    done = union(answered, skipped).subquery()
    counted = select(func.count()).join(Comparison, Comparison.id == done.c.comparison_id).select_from(done)
    beside = MIXED_IN | _skipped_before(Comparison.id)
    return counted.where(Comparison.project_id == PROJECT, Comparison.offered, beside)


def _numbers(*, mixed: bool) -> Select[Any]:
    of_queues = [~MIXED_IN & ~_skipped_before(Lease.comparison_id)] if mixed else []
    beside = _beside_queues().scalar_subquery() if mixed else literal(0)
    counts = _done(), _held(), _held(*of_queues), COUNT_KEPT
    return STANDING.add_columns(*(count.scalar_subquery() for count in counts), beside)


_NUMBERS = {mixed: prepared(_numbers(mixed=mixed)) for mixed in (True, False)}


def numbers(
    session: Session, project_id: int, labeler_id: int, since: datetime, most: int, *, mixed: bool
) -> tuple[Standing, Numbers]:
    """Return the labeler's state in the queues and the counts behind their progress, in one statement.

    Args:
        since: when the counted day begins. Tasks skipped before it do not count as queued.
        most: an upper limit for the count of tasks kept for them.
        mixed: the project mixes calibration items or repeats in.
    """
    values = {"in_project": project_id, "for_labeler": labeler_id, "since": since, "most": most}
    midnight = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    row = session.execute(_NUMBERS[mixed], values | {"midnight": midnight}).one()
    return standing_in(row), Numbers(*row[len(STANDING.selected_columns) :])


class Waiting(NamedTuple):
    """What keeps a labeler waiting.

    any: the project has a comparison. kept: an unjudged one with room is kept for others. taken: an unjudged one is
    on somebody else's desk and could come back to this labeler.

    Comparisons that they have judged do not count. With adaptive overlap, an open one would reveal how others answered.
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
    # Start from the live leases, because there are few.
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
    """Return (done, total) of the sampling that will bring new comparisons; None if there is none."""
    waiting = Run.project_id == project_id, Run.kind == "sample", Run.state.in_(("queued", "running"))
    sums = select(func.count(), func.sum(Run.progress_done), func.sum(Run.progress_total)).where(*waiting)
    runs, done, total = session.execute(sums).one()
    return (int(done), int(total)) if runs else None
