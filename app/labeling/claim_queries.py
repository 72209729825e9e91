"""SQL of claims: which comparison a labeler is given next.

Each queue is read through one index in its order: highest priority first, then id. Comparisons that the labeler has
judged but that still wait for other people pile up at the front. The labeler's place (`queue_place`) marks where their
remaining work begins, so nothing before it is scanned twice. A comparison that enters the queue before that place
carries a later transaction id (`opened_xid`) and is found by it. So a claim costs the same however long the queue is
and however much the labeler has judged.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Row,
    Select,
    any_,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    or_,
    outerjoin,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Session, aliased

from app.access.queries import projects_of
from app.db import prepared
from app.labeling.conditions import (
    MIXED_IN,
    Condition,
    continued,
    free,
    judged_by,
    leased_otherwise,
    leased_to,
    literally,
    met,
    not_done,
    open_to,
    passed_over,
)
from app.models import (
    Comparison,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    Lease,
    Project,
    QueuePlace,
)
from app.models.comparison import IN_OPEN_QUEUE, KEPT_FOR_GROUP, KEPT_FOR_LABELER, QUEUE_ORDER

# Check at most this many newly queued comparisons one by one. With more, search the queue from the beginning.
FEW = 100

NEVER = 2**63 - 1  # later than any transaction id

# All transactions before this one are visible to the reader.
_OLDEST_RUNNING = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)


class Queue(NamedTuple):
    """A project's open queue, or the queue kept for one group."""

    project_id: int
    group_id: int | None = None

    @property
    def statements(self) -> "_OfQueue":
        return _IN_PROJECT if self.group_id is None else _IN_GROUP

    def values(self, labeler_id: int) -> dict[str, Any]:
        of = {"in_project": self.project_id} if self.group_id is None else {"for_group": self.group_id}
        return of | {"for_labeler": labeler_id}


class Place(NamedTuple):
    """Where a labeler's remaining work in a queue begins; see the table `queue_place`."""

    priority: int | None
    comparison_id: int | None
    checked_xid: int


class Standing(NamedTuple):
    """A labeler's state in a project's queues.

    groups: the labeler's groups in the project. now_xid: the oldest running transaction. places: by group; None is the
    open queue. is_kept_for: some comparison is kept for them by name.
    """

    groups: list[int]
    now_xid: int
    places: dict[int | None, Place]
    is_kept_for: bool

    def queues(self, project_id: int) -> list[Queue]:
        """Return the queues in the order in which they are searched."""
        return [Queue(project_id, group_id) for group_id in (*self.groups, None)]


def standing(session: Session, project_id: int, labeler_id: int) -> Standing:
    return standing_in(session.execute(STANDING, {"in_project": project_id, "for_labeler": labeler_id}).one())


def standing_in(row: Row[*tuple[Any, ...]]) -> Standing:
    """Read the columns of `STANDING` from a row."""
    # A place with a future transaction id comes from another cluster, before a restore restarted the ids.
    places = {group_id: Place(*place) for group_id, *place in row.places or [] if place[-1] <= row.now_xid}
    return Standing(sorted(row.groups or []), row.now_xid, places, row.is_kept_for)


# ---- the statements of each claim ------------------------------------------------------------------------------------
# Built once, because building one takes longer than running it and every card runs them.

# Must not be named like columns, or SQLAlchemy would set them in an INSERT or UPDATE.
PROJECT, LABELER = bindparam("in_project", type_=BigInteger), bindparam("for_labeler", type_=BigInteger)
_GROUP, _EXCEPT = bindparam("for_group", type_=BigInteger), bindparam("except_id", type_=BigInteger)
_NOT_EXCEPTED = Comparison.id.is_distinct_from(_EXCEPT)
_KEPT: list[Condition] = [
    Comparison.labeler_id == LABELER,
    Comparison.project_id == PROJECT,
    literally(KEPT_FOR_LABELER),
    ~MIXED_IN,
]
_OPEN: list[Condition] = [Comparison.project_id == PROJECT, literally(IN_OPEN_QUEUE)]
_OF_GROUP: list[Condition] = [Comparison.group_id == _GROUP, literally(KEPT_FOR_GROUP)]
_PLACE = tuple_(bindparam("before", type_=BigInteger), bindparam("comparison_id", type_=BigInteger))
_FROM_PLACE = tuple_(*QUEUE_ORDER) >= _PLACE
MOST = bindparam("most", type_=Integer)


def _standing() -> Select[Any]:
    groups = (
        select(func.array_agg(LabelerGroup.id))
        .join(LabelerGroupMember, LabelerGroupMember.group_id == LabelerGroup.id)
        .where(LabelerGroup.project_id == PROJECT, LabelerGroupMember.labeler_id == LABELER)
    )
    columns = QueuePlace.group_id, QueuePlace.priority, QueuePlace.comparison_id, QueuePlace.checked_xid
    places = select(func.jsonb_agg(func.jsonb_build_array(*columns)))
    places = places.where(QueuePlace.labeler_id == LABELER, QueuePlace.project_id == PROJECT)
    return select(
        groups.scalar_subquery().label("groups"),
        places.scalar_subquery().label("places"),
        _OLDEST_RUNNING.label("now_xid"),
        exists().where(*_KEPT).label("is_kept_for"),
    )


STANDING = prepared(_standing())


class _OfQueue(NamedTuple):
    """Statements about one kind of queue.

    opened: what entered the queue since a place was checked. next: the first comparison at or after a place that the
    labeler has not judged, even if locked or leased, and the first one that they can be given. among: the first that
    they can be given of some ids. how_many: how many are left, up to a limit.
    """

    opened: Select[int, int, int]
    next: Select[Any]
    next_locked: Select[Any]
    among: Select[Any]
    among_locked: Select[Any]
    how_many: Select[int]


def _of_queue(members: list[Condition]) -> _OfQueue:
    opened = select(Comparison.id, Comparison.priority, Comparison.opened_xid)
    opened = opened.where(*members, Comparison.opened_xid >= bindparam("checked", type_=BigInteger))
    opened = opened.where(*not_done(LABELER)).order_by(Comparison.opened_xid, Comparison.id).limit(FEW + 1)
    in_order = select(Comparison).where(*members).order_by(*QUEUE_ORDER).limit(1)
    can_be_given = in_order.where(*free(LABELER), _NOT_EXCEPTED)
    left_for_them = in_order.with_only_columns(Comparison.priority, Comparison.id).where(*not_done(LABELER))
    reached = left_for_them.where(_FROM_PLACE).cte("reached")
    among = can_be_given.where(Comparison.id == any_(bindparam("ids", type_=ARRAY(BigInteger))))

    def following(found: Select[Any]) -> Select[Any]:
        part = found.cte("found")
        row = aliased(Comparison, part, name="found_one")
        columns: Select[Any] = select(reached.c.priority, reached.c.id, row)
        return columns.select_from(outerjoin(reached, part, true()))

    lately = opened.subquery()
    behind = select(Comparison.id).join(lately, lately.c.id == Comparison.id).where(*members, *free(LABELER))
    behind = behind.where(tuple_(-lately.c.priority, lately.c.id) < _PLACE)
    on = select(Comparison.id).where(*members, _FROM_PLACE, *free(LABELER))
    left = [select(func.count()).select_from(part.limit(MOST).subquery()) for part in (behind, on)]
    return _OfQueue(
        opened=prepared(opened),
        next=prepared(following(can_be_given.where(_FROM_PLACE))),
        next_locked=prepared(following(_lock(can_be_given.where(_FROM_PLACE)))),
        among=prepared(among),
        among_locked=prepared(_lock(among)),
        how_many=prepared(select(func.least(left[0].scalar_subquery() + left[1].scalar_subquery(), MOST))),
    )


def _lock(query: Select[Any]) -> Select[Any]:
    """Lock the first row that nobody else has locked."""
    return query.with_for_update(skip_locked=True, key_share=True, of=Comparison)


_IN_PROJECT, _IN_GROUP = _of_queue(_OPEN), _of_queue(_OF_GROUP)
_FIRST_KEPT = prepared(select(Comparison).where(*_KEPT, *free(LABELER), _NOT_EXCEPTED).order_by(*QUEUE_ORDER).limit(1))
_FIRST_KEPT_LOCKED = prepared(_lock(_FIRST_KEPT))
COUNT_KEPT = prepared(
    select(func.count()).select_from(select(Comparison.id).where(*_KEPT, *free(LABELER)).limit(MOST).subquery())
)
FRESH: dict[str, Any] = {"populate_existing": True}  # reload a comparison after locking it


Opened = Row[int, int, int]


def _opened_behind(session: Session, queue: Queue, labeler_id: int, place: Place) -> Sequence[Opened] | None:
    """Return (id, priority, opened_xid) of comparisons that entered the queue before a place, the earliest first.

    None if more than `FEW` entered the whole queue, for example from an import or a round's samples.
    """
    values = queue.values(labeler_id) | {"checked": place.checked_xid}
    opened = session.execute(queue.statements.opened, values).all()
    if len(opened) > FEW:
        return None
    if place.priority is None or place.comparison_id is None:
        return opened
    begin = (-place.priority, place.comparison_id)
    return [row for row in opened if (-row.priority, row.id) < begin]


def next_in_queue(
    session: Session,
    queue: Queue,
    labeler_id: int,
    place: Place | None,
    now_xid: int,
    *,
    except_id: int | None = None,
    lock: bool = True,
) -> tuple[Comparison | None, Place]:
    """Return the next comparison for this labeler in a queue, locked, and the labeler's new place.

    Args:
        place: the labeler's place so far; None for the beginning.
        now_xid: from `standing` in the same transaction.

    Returns:
        None for the comparison when there is none now, or when other transactions hold the last ones locked.
    """
    statements, values = queue.statements, queue.values(labeler_id) | {"except_id": except_id}
    if place is not None:
        opened = _opened_behind(session, queue, labeler_id, place)
        if opened is None:
            place = None
        else:
            place = place._replace(checked_xid=min(opened[0].opened_xid, now_xid) if opened else now_xid)
            if opened:
                among = statements.among_locked if lock else statements.among
                named = values | {"ids": [row.id for row in opened]}
                if found := session.scalars(among, named, execution_options=FRESH).one_or_none():
                    return found, place
    checked = place.checked_xid if place else now_xid
    if place is not None and place.priority is None:
        return None, place
    query = statements.next_locked if lock else statements.next
    row = session.execute(query, values | _begin(place), execution_options=FRESH).one_or_none()
    if row is None:
        return None, Place(None, None, checked)
    return row.found_one, Place(row.priority, row.id, checked)


def _begin(place: Place | None) -> dict[str, int]:
    """Return a place as statement parameters: before the queue if None, past its end if nothing is left."""
    if place is None:
        return {"before": -(2**63), "comparison_id": 0}
    if place.priority is None or place.comparison_id is None:
        return {"before": 2**63 - 1, "comparison_id": 2**63 - 1}
    return {"before": -place.priority, "comparison_id": place.comparison_id}


def next_kept(
    session: Session, project_id: int, labeler_id: int, *, except_id: int | None = None, lock: bool = True
) -> Comparison | None:
    """Return the next comparison that is kept for this labeler by name, locked."""
    values = {"in_project": project_id, "for_labeler": labeler_id, "except_id": except_id}
    query = _FIRST_KEPT_LOCKED if lock else _FIRST_KEPT
    return session.scalars(query, values, execution_options=FRESH).one_or_none()


def next_skipped(
    session: Session,
    project_id: int,
    labeler_id: int,
    groups: list[int],
    *,
    except_id: int | None = None,
    lock: bool = True,
) -> Comparison | None:
    """Return the comparison that the labeler skipped longest ago, locked.

    This includes calibration items. If skipped items never came back, labelers could recognize them.
    """
    query = (
        select(Comparison)
        .join(Lease, Lease.comparison_id == Comparison.id)
        .where(Lease.labeler_id == labeler_id, Lease.state == "skipped", Comparison.project_id == project_id)
        .where(*open_to(labeler_id, groups), ~judged_by(labeler_id), ~leased_otherwise(labeler_id))
        .where(~passed_over(labeler_id, groups))
        .where(Comparison.gold.is_(None) | ~met(labeler_id, "live", "recused") & ~continued())
        .order_by(Lease.created_at)
        .limit(1)
    )
    if except_id is not None:
        query = query.where(Comparison.id != except_id)
    return session.scalars(_lock(query) if lock else query, execution_options=FRESH).one_or_none()


def claim_one(
    session: Session, project_id: int, labeler_id: int, groups: list[int], comparison_id: int
) -> Comparison | None:
    """Lock this comparison if the labeler can judge it, even if they skipped it."""
    chosen = select(Comparison).where(
        Comparison.id == comparison_id,
        Comparison.project_id == project_id,
        *open_to(labeler_id, groups),
        ~judged_by(labeler_id),
        ~leased_to(labeler_id, "live", "recused"),
        ~passed_over(labeler_id, groups),
    )
    return session.scalars(_lock(chosen), execution_options=FRESH).one_or_none()


def claim_first(
    session: Session, labeler_id: int, groups: list[int], ids: Sequence[int], *, lock: bool = True
) -> Comparison | None:
    """Return the first of these comparisons that the labeler can judge and has not skipped; with `lock`, locked."""
    among = literal(list(ids), ARRAY(BigInteger))
    could = Comparison.gold.is_(None) | ~met(labeler_id, "live", "skipped", "recused") & ~continued()
    chosen = select(Comparison).where(Comparison.id == any_(among), *open_to(labeler_id, groups), could)
    chosen = chosen.where(*free(labeler_id), ~passed_over(labeler_id, groups))
    chosen = chosen.order_by(func.array_position(among, Comparison.id)).limit(1)
    return session.scalars(_lock(chosen) if lock else chosen, execution_options=FRESH).one_or_none()


def count_left(session: Session, queue: Queue, labeler_id: int, place: Place | None, limit: int) -> int:
    """Count the comparisons of a queue that this labeler could be given now, up to `limit`.

    At most `FEW` + 1 of them may have entered before the labeler's place.
    """
    if limit <= 0:
        return 0
    values = {"most": limit, "checked": place.checked_xid if place else NEVER}
    return session.scalar(queue.statements.how_many, queue.values(labeler_id) | values | _begin(place)) or 0


def projects_with_work(session: Session, labeler_id: int) -> Sequence[Row[Project, bool]]:
    """Return (project, whether a card is on the desk) for the labeler's projects with open work.

    Projects with a card come first, then the one they last judged in. The caller must check whether the open work is
    for this labeler.
    """
    on_desk = exists().where(
        Lease.labeler_id == labeler_id, Lease.state == "live", Lease.comparison_id == Comparison.id
    )
    held = exists().where(Comparison.project_id == Project.id, Comparison.state == "open", on_desk)
    own_groups = select(LabelerGroupMember.group_id).where(LabelerGroupMember.labeler_id == labeler_id)
    of_project = Comparison.project_id == Project.id
    waiting = [
        exists().where(of_project, literally(IN_OPEN_QUEUE)),
        exists().where(of_project, Comparison.labeler_id == labeler_id, literally(KEPT_FOR_LABELER)),
        exists().where(of_project, Comparison.group_id.in_(own_groups), literally(KEPT_FOR_GROUP)),
    ]
    # Calibration items and repeats are in no queue, but a labeler who gave one back gets it again like any other task.
    of_item = Lease.comparison_id == Comparison.id, of_project, MIXED_IN, Comparison.state == "open"
    waiting += [
        exists().where(Lease.labeler_id == labeler_id, Lease.state.in_(states), *of_item)
        for states in (("released", "expired"), ("skipped",))  # each has an index
    ]
    last = (
        select(Comparison.project_id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Judgment.labeler_id == labeler_id)
        .order_by(Judgment.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    with_work = select(Project, held.label("held")).where(
        Project.id.in_(projects_of(labeler_id, "labeler")), Project.archived_at.is_(None), or_(held, *waiting)
    )
    order = (held.desc(), (Project.id == func.coalesce(last, 0)).desc(), Project.id)
    return session.execute(with_work.order_by(*order)).all()
