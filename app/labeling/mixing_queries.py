"""SQL of what is mixed into a labeler's tasks unseen: calibration items, and repeats of their own answers."""

from typing import NamedTuple

from sqlalchemy import BigInteger, Select, Subquery, cast, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.access import gate_queries
from app.labeling.conditions import Condition, continued, leased_to, literally, met
from app.models import Comparison, Judgment, Lease, ProjectLabeler, User
from app.models.comparison import IN_CALIBRATION

# How many of a labeler's newest judgments, in all projects, are searched: so the query does not grow with their work.
LOOK_BACK = 5000
FEW = 20  # an item is drawn from this many that the labeler has not met
# Tasks given back unanswered that are looked through. Whoever takes back all answers of an hour gives so many back.
GIVEN_BACK = 1000


def claim_calibration(session: Session, project_id: int, labeler_id: int) -> Comparison | None:
    """Locks a calibration item that this labeler has not met, drawn at random; everybody gets each item once. Nor one
    that they gave back: it comes again before anything is drawn, or others passed it over, as if they had taken it.

    The search begins at a random id, so that no more than a few are looked at however many there are.
    """
    items: list[Condition] = [Comparison.project_id == project_id, literally(IN_CALIBRATION)]
    low, high = func.min(Comparison.id), func.max(Comparison.id)
    drawn = cast(func.floor(func.random() * (high - low + 1)), BigInteger)
    start = session.scalar(select(low + drawn).where(*items))
    if start is None:
        return None
    fresh = [*items, ~met(labeler_id, "live", "skipped", "recused", "released", "expired"), ~continued()]
    for part in (Comparison.id >= start, Comparison.id < start):
        few = select(Comparison.id).where(*fresh, part).order_by(Comparison.id).limit(FEW)
        if ids := session.scalars(few).all():
            among = select(Comparison).where(Comparison.id.in_(ids), *items).order_by(func.random()).limit(1)
            among = among.with_for_update(skip_locked=True, key_share=True, of=Comparison)
            found = session.scalars(among, execution_options={"populate_existing": True}).one_or_none()
            if found is not None:
                return found
    return None


def given_back(session: Session, project_id: int, labeler_id: int) -> list[int]:
    """Comparisons that a labeler was given and that went back unanswered, in the order in which they were given; at
    most `GIVEN_BACK` in all projects together."""
    last = select(Lease.comparison_id, Lease.created_at)
    last = last.where(Lease.labeler_id == labeler_id, Lease.state.in_(("released", "expired")))
    newest = last.order_by(Lease.created_at.desc()).limit(GIVEN_BACK).subquery()
    still = select(Comparison.id).join(newest, newest.c.comparison_id == Comparison.id)
    still = still.where(Comparison.project_id == project_id, Comparison.state == "open")
    return list(session.scalars(still.order_by(newest.c.created_at)))


def can_refer(session: Session, comparison_id: int) -> bool:
    """Whether a copy of it can be made now: nobody is judging or deciding it at this moment."""
    return session.scalar(_refer(select(Comparison.id).where(Comparison.id == comparison_id))) is not None


def _refer(query: Select[int]) -> Select[int]:
    """Locks what a new row will name, as the database does for it, but waits for nobody."""
    return query.with_for_update(read=True, key_share=True, skip_locked=True, of=Comparison)


def is_begun(session: Session, comparison_id: int) -> bool:
    """Whether anybody holds or has judged it: its rubric stays what it is then."""
    judged = exists().where(Judgment.comparison_id == comparison_id)
    held = exists().where(Lease.comparison_id == comparison_id, Lease.state == "live")
    return bool(session.scalar(select(or_(judged, held))))


def is_continued(session: Session, item_id: int) -> bool:
    return bool(session.scalar(select(continued()).where(Comparison.id == item_id)))


def make_room(session: Session, comparison_id: int) -> None:
    """Gives a calibration item, which is locked, a place for one more labeler."""
    taken = Comparison.judgment_count + Comparison.lease_count
    full = update(Comparison).where(Comparison.id == comparison_id, taken >= Comparison.overlap)
    session.execute(full.values(overlap=taken + 1), execution_options={"synchronize_session": False})


WINDOW = 50  # a repeat is drawn from so many answers: those that just became old enough
_repeat = aliased(Comparison)


def to_repeat(session: Session, project_id: int, labeler_id: int, gap: int) -> int | None:
    """A comparison of the labeler's own whose answer at least `gap` others of theirs followed, drawn at random.

    Not one repeated already, nor one judged under an older rubric, by which the answer may rightly be another, nor one
    of which they have seen since what others said.
    """
    last = _newest(labeler_id, gap + LOOK_BACK)
    old_enough = (
        select(last.c.comparison_id, last.c.swapped, last.c.preference, last.c.rubric_id)
        .join(Comparison, Comparison.id == last.c.comparison_id)
        .where(last.c.superseded_at.is_(None), Comparison.project_id == project_id)
        .where(Comparison.offered)  # of a ranking's pairs one: it was one task
        .order_by(last.c.created_at.desc())
        .offset(gap)
        .limit(WINDOW)
        .subquery()
    )
    newest = gate_queries.newest_rubric(session, project_id)
    if newest is None:
        return None
    own = old_enough.c
    repeated = exists().where(_repeat.repeat_of_id == own.comparison_id, _repeat.labeler_id == labeler_id)
    query = (
        select(own.comparison_id)
        .join(Comparison, Comparison.id == own.comparison_id)
        .where(own.preference.is_not(None), own.swapped.is_not(None), own.rubric_id == newest.id, ~repeated)
        .where(Comparison.purpose.in_(("train", "heldout", "human_eval")), Comparison.ranking_id.is_(None))
        .where(Comparison.state != "withdrawn", ~leased_to(labeler_id, "recused"))
        .order_by(func.random())
        .limit(1)
    )
    return session.scalar(_refer(query))


def _newest(labeler_id: int, limit: int) -> Subquery:
    newest = select(Judgment).where(Judgment.labeler_id == labeler_id)
    return newest.order_by(Judgment.created_at.desc(), Judgment.id.desc()).limit(limit).subquery()


def seen_swapped(session: Session, comparison_id: int, labeler_id: int) -> bool | None:
    """Whether the labeler saw B first when they last judged this comparison."""
    query = select(Judgment.swapped).where(Judgment.comparison_id == comparison_id, Judgment.labeler_id == labeler_id)
    return session.scalar(query.order_by(Judgment.id.desc()).limit(1))


# ---- what calibration says of a labeler ------------------------------------------------------------------------------


class Record(NamedTuple):
    """The labeler's newest answers to calibration items, and how many took the right side; not judging is wrong."""

    answers: int
    right: int


def calibration_record(session: Session, project_id: int, labeler_id: int, window: int) -> Record:
    """The record of at most `window` answers among the last `LOOK_BACK` judgments, since an admin last unpaused the
    labeler."""
    since = (
        select(ProjectLabeler.counted_from)
        .where(ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id == labeler_id)
        .scalar_subquery()
    )
    last = _newest(labeler_id, LOOK_BACK)
    said = last.c
    newest = (
        select((func.sign(said.preference) == func.sign(Comparison.gold)).label("is_right"))
        .select_from(last)
        .join(Comparison, Comparison.id == said.comparison_id)
        .where(Comparison.project_id == project_id, literally(IN_CALIBRATION))
        .where(said.superseded_at.is_(None), said.created_at > func.coalesce(since, func.to_timestamp(0)))
        .order_by(said.created_at.desc(), said.id.desc())
        .limit(window)
        .subquery()
    )
    row = session.execute(select(func.count(), func.count().filter(newest.c.is_right)).select_from(newest)).one()
    return Record(row[0], row[1])


def lock_standing(session: Session, project_id: int, labeler_id: int) -> ProjectLabeler:
    """The labeler's row in the project, made if there is none, locked."""
    key = {"project_id": project_id, "labeler_id": labeler_id}
    session.execute(insert(ProjectLabeler).values(key).on_conflict_do_nothing())
    return session.get_one(ProjectLabeler, key, with_for_update=True, populate_existing=True)


def paused_by_calibration(session: Session, project_id: int) -> list[User]:
    """Labelers whom the service itself has paused, by name."""
    paused = ProjectLabeler.project_id == project_id, ProjectLabeler.state == "paused"
    found = select(User).join(ProjectLabeler, ProjectLabeler.labeler_id == User.id)
    return list(session.scalars(found.where(*paused, ProjectLabeler.changed_by.is_(None)).order_by(User.name)))


# ---- items -----------------------------------------------------------------------------------------------------------


def _same_pair(item: Comparison) -> list[Condition]:
    """Items that ask about what this one asks about: copies of one comparison, which may be an item itself."""
    root = item.repeat_of_id or item.id
    return [or_(Comparison.id == root, Comparison.repeat_of_id == root), Comparison.gold.is_not(None)]


def lock_kin(session: Session, item: Comparison) -> list[Comparison]:
    """The item and its like under other rubric versions: with the same side for an answer."""
    kin = select(Comparison).where(*_same_pair(item), func.sign(Comparison.gold) == func.sign(item.gold))
    locked = kin.order_by(Comparison.id).with_for_update(key_share=True)
    return list(session.scalars(locked, execution_options={"populate_existing": True}))


def in_use(session: Session, item: Comparison) -> int | None:
    """An item in use that asks about what this one asks about."""
    query = select(Comparison.id).where(*_same_pair(item), Comparison.state == "open")
    return session.scalar(query.order_by(Comparison.id.desc()).limit(1))


def with_answer(session: Session, item: Comparison, gold: int) -> int | None:
    """An item that asks about what this one asks about, and takes the side of gold."""
    side = (gold > 0) - (gold < 0)
    query = select(Comparison.id).where(*_same_pair(item), func.sign(Comparison.gold) == side)
    return session.scalar(query.order_by(Comparison.id.desc()).limit(1))
