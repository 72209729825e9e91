"""SQL of claims: which comparison a labeler is given next.

Every queue is read through one index, in its order: highest priority first, then id. Behind a labeler stay the
comparisons they have judged and that wait for other people; those are never walked over twice. The labeler's place
(`queue_place`) says where what is left for them begins, and whatever came into the queue behind it since carries a
later transaction id and is found by that. So a claim costs the same however long the queue and however much the
labeler has judged.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Row,
    Select,
    TextClause,
    and_,
    any_,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.access.queries import projects_of
from app.models import (
    Comparison,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    Lease,
    Project,
    QueuePlace,
)
from app.models.comparison import AVAILABLE, IN_CALIBRATION, IN_OPEN_QUEUE, KEPT_FOR_GROUP, KEPT_FOR_LABELER

Condition = ColumnElement[bool] | TextClause
# Making one takes longer than what is asked with it.
_kin, _newer, _other = aliased(Comparison), aliased(Comparison), aliased(Comparison)
_own, _theirs, _before = aliased(Lease), aliased(Lease), aliased(Lease)

# So many that came into a queue are looked through; where there are more, the labeler's search starts anew.
FEW = 100

# How many of the tasks that others were given since a task went back are looked at.
LATER = 1000

# Everything by transactions before this one is visible to whoever reads it.
_OLDEST_RUNNING = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)


def literally(predicate: str) -> TextClause:
    """An index's predicate, word for word: only then does the planner use that index."""
    columns = r"\b(state|offered|judgment_count|lease_count|overlap|gold|labeler_id|group_id)\b(?!')"
    return text(re.sub(columns, r"comparison.\1", predicate))


class Queue(NamedTuple):
    """A project's open queue, or what is kept there for a group."""

    project_id: int
    group_id: int | None = None

    def members(self) -> list[Condition]:
        if self.group_id is None:
            return [Comparison.project_id == self.project_id, literally(IN_OPEN_QUEUE)]
        return [Comparison.group_id == self.group_id, literally(KEPT_FOR_GROUP)]


# Calibration items and repeats: in no queue, but given now and then in place of what is.
MIXED_IN = Comparison.gold.is_not(None) | (Comparison.purpose == "repeat")


class Place(NamedTuple):
    """Where in a queue that begins which is left for a labeler; see the table of the same name."""

    priority: int | None
    comparison_id: int | None
    checked_xid: int


class Standing(NamedTuple):
    """A labeler's groups in a project, and the oldest transaction running now."""

    groups: list[int]
    now_xid: int


def standing(session: Session, project_id: int, labeler_id: int) -> Standing:
    groups = (
        select(func.array_agg(LabelerGroup.id))
        .join(LabelerGroupMember, LabelerGroupMember.group_id == LabelerGroup.id)
        .where(LabelerGroup.project_id == project_id, LabelerGroupMember.labeler_id == labeler_id)
    )
    row = session.execute(select(groups.scalar_subquery(), _OLDEST_RUNNING)).one()
    return Standing(sorted(row[0] or []), row[1])


def places(session: Session, project_id: int, labeler_id: int, now_xid: int) -> dict[int | None, Place]:
    """The labeler's places in the project's queues, by group (none: the open one)."""
    own = select(QueuePlace.group_id, QueuePlace.priority, QueuePlace.comparison_id, QueuePlace.checked_xid)
    rows = session.execute(own.where(QueuePlace.labeler_id == labeler_id, QueuePlace.project_id == project_id))
    # A place from the future was written in another cluster, before a restore: transaction ids began anew.
    return {row.group_id: Place(*row[1:]) for row in rows if row.checked_xid <= now_xid}


def save_place(session: Session, queue: Queue, labeler_id: int, place: Place) -> None:
    key = {"labeler_id": labeler_id, "project_id": queue.project_id, "group_id": queue.group_id}
    fresh = insert(QueuePlace).values(**key, **place._asdict())
    session.execute(fresh.on_conflict_do_update(index_elements=list(key), set_=place._asdict()))


# ---- what is left for a labeler --------------------------------------------------------------------------------------


def judged_by(labeler_id: int) -> ColumnElement[bool]:
    """Also where the judgment was superseded: nobody is asked twice. But for what they took back themselves."""
    own = Judgment.comparison_id == Comparison.id, Judgment.labeler_id == labeler_id
    return _looked_up(select(Judgment.id).where(*own, Judgment.superseded_for.is_distinct_from("undone")))


def leased_to(labeler_id: int, *states: str) -> ColumnElement[bool]:
    own = Lease.comparison_id == Comparison.id, Lease.labeler_id == labeler_id
    return _looked_up(select(Lease.id).where(*own, Lease.state.in_(states)))


def met(labeler_id: int, *states: str) -> ColumnElement[bool]:
    """Of calibration items: the labeler has judged this very pair before, or has or had a lease on it in these states:
    as what the item was made of, or under an older rubric. Whoever reviewed that knows the answer."""
    root = func.coalesce(Comparison.repeat_of_id, Comparison.id)
    judged = select(Judgment.id).join(_kin, _kin.id == Judgment.comparison_id)
    judged = judged.where(Judgment.labeler_id == labeler_id, Judgment.superseded_for.is_distinct_from("undone"))
    leased = select(Lease.id).join(_kin, _kin.id == Lease.comparison_id)
    leased = leased.where(Lease.labeler_id == labeler_id, Lease.state.in_(states))
    same = or_(_kin.id == root, _kin.repeat_of_id == root)
    return or_(_looked_up(judged.where(same)), _looked_up(leased.where(same)))


def continued() -> ColumnElement[bool]:
    """Of calibration items: it goes on as a copy under a newer rubric, and is itself not given out any more."""
    root = func.coalesce(Comparison.repeat_of_id, Comparison.id)
    same_side = func.sign(_newer.gold) == func.sign(Comparison.gold)
    return exists().where(_newer.repeat_of_id == root, _newer.id > Comparison.id, same_side)


def passed_over(labeler_id: int, groups: list[int]) -> ColumnElement[bool]:
    """A condition on calibration items and repeats that the labeler gave back: an ordinary task would be gone by now,
    because others have since filled all places of one that this labeler could have been given instead.

    Nobody else is given a labeler's items and repeats. If these always came again, while ordinary tasks are taken by
    others, anyone who leaves a task and comes back later would see which kind it was.
    """
    mine = _own.comparison_id == Comparison.id, _own.labeler_id == labeler_id
    given, ended = (
        select(func.max(column)).where(*mine).correlate(Comparison).scalar_subquery()
        for column in (_own.created_at, _own.expires_at)
    )
    later = select(_theirs.comparison_id, _theirs.labeler_id).where(_theirs.created_at > ended)
    since = later.order_by(_theirs.created_at).limit(LATER).correlate(Comparison).subquery()
    # Nor was it theirs before: what they have done or skipped, and what they gave back that came before this one.
    before = select(_before.id).where(_before.comparison_id == _other.id, _before.labeler_id == labeler_id)
    had = before.where(or_(_before.state.not_in(("released", "expired")), _before.created_at < given))
    taken = exists(
        select(_other.id)
        .join_from(since, _other, _other.id == since.c.comparison_id)
        .where(since.c.labeler_id != labeler_id, _other.project_id == Comparison.project_id)
        .where(_other.gold.is_(None), _other.purpose != "repeat", _other.labeler_id.is_(None))
        .where(or_(_other.group_id.is_(None), _other.group_id == any_(literal(groups, ARRAY(BigInteger)))))
        .where(or_(_other.state != "open", _other.judgment_count + _other.lease_count >= _other.overlap))
        .where(~_looked_up(had.correlate(Comparison, _other)))
        .correlate(Comparison)
    )
    return and_(MIXED_IN, taken)


def _looked_up(rows: Select[Any]) -> ColumnElement[bool]:
    """Whether there are such rows, looked up in an index for each comparison in turn. Without the OFFSET the planner
    may read all that the labeler has ever judged instead, for the sake of one comparison."""
    return exists(rows.offset(0))


def _not_done(labeler_id: int) -> list[ColumnElement[bool]]:
    """Neither judged nor given up for good; what was skipped comes back last, by another way."""
    return [~judged_by(labeler_id), ~leased_to(labeler_id, "skipped", "recused")]


def _free(labeler_id: int, except_id: int | None = None) -> list[ColumnElement[bool]]:
    found = [~judged_by(labeler_id), ~leased_to(labeler_id, "live", "skipped", "recused")]
    return found if except_id is None else [*found, Comparison.id != except_id]


def _in_order(conditions: Sequence[Condition]) -> Select[int, int]:
    query = select(Comparison.priority, Comparison.id).where(*conditions)
    return query.order_by(Comparison.priority.desc(), Comparison.id)


def _first(session: Session, query: Select[int, int], *, lock: bool) -> Row[int, int] | None:
    """The first row; with `lock`, the first that nobody else has locked, locked."""
    query = query.limit(1)
    if lock:
        query = query.with_for_update(skip_locked=True, of=Comparison)
    return session.execute(query).one_or_none()


def _stretches(place: Place | None) -> list[list[ColumnElement[bool]]]:
    """The parts of a queue from a place on; each is one range of the index."""
    if place is None:
        return [[]]
    if place.priority is None or place.comparison_id is None:
        return []
    same: list[ColumnElement[bool]] = [
        Comparison.priority == place.priority,
        Comparison.id >= place.comparison_id,
    ]
    return [same, [Comparison.priority < place.priority]]


def _opened_behind(
    session: Session, queue: Queue, labeler_id: int, place: Place
) -> Sequence[Row[int, int, int]] | None:
    """(id, priority, opened_xid) of what came into the queue behind a place, the earliest first.

    None where more came into it altogether than is worth looking through: an import, or a round's samples.
    """
    query = select(Comparison.id, Comparison.priority, Comparison.opened_xid).where(*queue.members())
    query = query.where(Comparison.opened_xid >= place.checked_xid, *_not_done(labeler_id))
    opened = session.execute(query.order_by(Comparison.opened_xid, Comparison.id).limit(FEW + 1)).all()
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
) -> tuple[int | None, Place]:
    """The next comparison for this labeler in a queue, locked; and the labeler's place from now on.

    Args:
        place: where they were; none: at the beginning.
        now_xid: as `standing` said in this transaction.

    Returns:
        None for the comparison when there is none now, or others are taking the last ones at this very moment.
    """
    free = _free(labeler_id, except_id)
    if place is not None:
        opened = _opened_behind(session, queue, labeler_id, place)
        if opened is None:
            place = None
        else:
            place = place._replace(checked_xid=min(opened[0].opened_xid, now_xid) if opened else now_xid)
            if opened:
                ids = literal([row.id for row in opened], ARRAY(BigInteger))
                among = _in_order([Comparison.id == any_(ids), *queue.members(), *free])
                if found := _first(session, among, lock=lock):
                    return found.id, place
    checked = place.checked_xid if place else now_xid
    ahead = None
    for stretch in _stretches(place):
        ahead = _first(session, _in_order([*queue.members(), *stretch, *_not_done(labeler_id)]), lock=False)
        if ahead:
            break
    if ahead is None:
        return None, Place(None, None, checked)
    place = Place(ahead.priority, ahead.id, checked)
    for stretch in _stretches(place):
        if found := _first(session, _in_order([*queue.members(), *stretch, *free]), lock=lock):
            return found.id, place
    return None, place


def _kept(project_id: int, labeler_id: int) -> list[Condition]:
    of_labeler = Comparison.labeler_id == labeler_id, Comparison.project_id == project_id
    return [*of_labeler, literally(KEPT_FOR_LABELER), ~MIXED_IN]


def next_kept(
    session: Session, project_id: int, labeler_id: int, *, except_id: int | None = None, lock: bool = True
) -> int | None:
    """The next comparison that is kept for this labeler by name, locked."""
    kept = _kept(project_id, labeler_id)
    found = _first(session, _in_order([*kept, *_free(labeler_id, except_id)]), lock=lock)
    return found.id if found else None


def _open_to(labeler_id: int, groups: list[int]) -> list[Condition]:
    """Comparisons with room that are kept for nobody else; calibration items, where room can be made."""
    return [
        or_(literally(f"({IN_CALIBRATION})"), literally(f"({AVAILABLE})")),
        or_(Comparison.labeler_id.is_(None), Comparison.labeler_id == labeler_id),
        or_(Comparison.group_id.is_(None), Comparison.group_id == any_(literal(groups, ARRAY(BigInteger)))),
    ]


def next_skipped(
    session: Session,
    project_id: int,
    labeler_id: int,
    groups: list[int],
    *,
    except_id: int | None = None,
    lock: bool = True,
) -> int | None:
    """What the labeler skipped, the longest ago first; locked. Calibration items too: that one never came back would
    tell what it was."""
    query = (
        select(Comparison.id)
        .join(Lease, Lease.comparison_id == Comparison.id)
        .where(Lease.labeler_id == labeler_id, Lease.state == "skipped", Comparison.project_id == project_id)
        .where(*_open_to(labeler_id, groups), ~judged_by(labeler_id), ~_leased_otherwise(labeler_id))
        .where(~passed_over(labeler_id, groups))
        .where(Comparison.gold.is_(None) | ~met(labeler_id, "live", "recused") & ~continued())
        .order_by(Lease.created_at)
        .limit(1)
    )
    if except_id is not None:
        query = query.where(Comparison.id != except_id)
    return session.scalar(query.with_for_update(skip_locked=True, of=Comparison) if lock else query)


def _leased_otherwise(labeler_id: int) -> ColumnElement[bool]:
    """Whether the labeler holds or gave up what they skipped, or skipped it once more, later."""
    other = aliased(Lease)
    own = other.comparison_id == Lease.comparison_id, other.labeler_id == labeler_id
    later = (other.state == "skipped") & (other.created_at > Lease.created_at)
    return exists().where(*own, or_(other.state.in_(("live", "recused")), later))


def claim_one(session: Session, project_id: int, labeler_id: int, groups: list[int], comparison_id: int) -> int | None:
    """Locks that comparison, if this labeler can judge it, skipped or not."""
    chosen = select(Comparison.id).where(
        Comparison.id == comparison_id,
        Comparison.project_id == project_id,
        *_open_to(labeler_id, groups),
        ~judged_by(labeler_id),
        ~leased_to(labeler_id, "live", "recused"),
        ~passed_over(labeler_id, groups),
    )
    return session.scalar(chosen.with_for_update(skip_locked=True, of=Comparison))


def claim_first(
    session: Session, labeler_id: int, groups: list[int], ids: Sequence[int], *, lock: bool = True
) -> int | None:
    """The first of those comparisons that this labeler can judge and has not skipped; with `lock`, locked."""
    among = literal(list(ids), ARRAY(BigInteger))
    could = Comparison.gold.is_(None) | ~met(labeler_id, "live", "skipped", "recused") & ~continued()
    chosen = select(Comparison.id).where(Comparison.id == any_(among), *_open_to(labeler_id, groups), could)
    chosen = chosen.where(*_free(labeler_id), ~passed_over(labeler_id, groups))
    chosen = chosen.order_by(func.array_position(among, Comparison.id)).limit(1)
    return session.scalar(chosen.with_for_update(skip_locked=True, of=Comparison) if lock else chosen)


def count_left(session: Session, queue: Queue, labeler_id: int, place: Place | None, limit: int) -> int:
    """How many comparisons of a queue this labeler could be given now, counted up to `limit`."""
    free, count = _free(labeler_id, None), 0
    parts = [[*queue.members(), *stretch] for stretch in _stretches(place)]
    if place is not None and (opened := _opened_behind(session, queue, labeler_id, place)):
        parts.append([Comparison.id.in_([row.id for row in opened])])
    for part in parts:
        if count < limit:
            some = select(Comparison.id).where(*part, *free).limit(limit - count).subquery()
            count += session.scalar(select(func.count()).select_from(some)) or 0
    return count


def count_kept(session: Session, project_id: int, labeler_id: int, limit: int) -> int:
    kept = _kept(project_id, labeler_id)
    some = select(Comparison.id).where(*kept, *_free(labeler_id, None)).limit(limit).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def projects_with_work(session: Session, labeler_id: int) -> Sequence[Row[Project, bool]]:
    """(project, whether a card is on the desk) of the labeler's projects with something open: first those with a card,
    then the one judged in last. Whether it is for this labeler has to be looked up."""
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
    # Items and repeats stand in no queue, but come again to whoever gave them back, as any other task does.
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
        Project.id.in_(projects_of(labeler_id, "labeler")), or_(held, *waiting)
    )
    order = (held.desc(), (Project.id == func.coalesce(last, 0)).desc(), Project.id)
    return session.execute(with_work.order_by(*order)).all()
