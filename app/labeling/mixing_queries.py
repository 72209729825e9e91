"""SQL of the tasks that are mixed in and look like any other: calibration items, and repeats of
labelers' own answers."""

from typing import NamedTuple

from sqlalchemy import BigInteger, Select, Subquery, cast, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.access import gate_queries
from app.labeling.conditions import Condition, continued, leased_to, literally, met
from app.models import Comparison, Judgment, Lease, ProjectLabeler, User
from app.models.comparison import IN_CALIBRATION

# Search at most this many of a labeler's newest judgments, in all projects, so that cost does not grow with their work.
LOOK_BACK = 5000
FEW = 20  # draw an item from this many that the labeler has not met
# Look through at most this many tasks given back unanswered, about one hour of answers that were all taken back.
GIVEN_BACK = 1000


def claim_calibration(session: Session, project_id: int, labeler_id: int) -> Comparison | None:
    """Lock a random calibration item that this labeler has not met; each labeler gets each item once.

    Items that the labeler gave back do not count as new. They come again before any draw, or are treated as taken by
    others once others have passed them.

    The search begins at a random id, so it reads few rows however many items there are.
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
    """Return comparisons that a labeler was given and that went back unanswered, in the order in which they were given.

    At most `GIVEN_BACK` are read, over all projects.
    """
    last = select(Lease.comparison_id, Lease.created_at)
    last = last.where(Lease.labeler_id == labeler_id, Lease.state.in_(("released", "expired")))
    newest = last.order_by(Lease.created_at.desc()).limit(GIVEN_BACK).subquery()
    still = select(Comparison.id).join(newest, newest.c.comparison_id == Comparison.id)
    still = still.where(Comparison.project_id == project_id, Comparison.state == "open")
    return list(session.scalars(still.order_by(newest.c.created_at)))


def can_refer(session: Session, comparison_id: int) -> bool:
    """Tell whether the comparison can be copied now, because nobody is judging or deciding it at this moment."""
    return session.scalar(_refer(select(Comparison.id).where(Comparison.id == comparison_id))) is not None


def _refer(query: Select[int]) -> Select[int]:
    """Take the lock that a foreign key to this row needs, but skip the row instead of waiting."""
    return query.with_for_update(read=True, key_share=True, skip_locked=True, of=Comparison)


def is_begun(session: Session, comparison_id: int) -> bool:
    """Tell whether anybody holds or has judged the comparison. From then on its rubric is fixed."""
    judged = exists().where(Judgment.comparison_id == comparison_id)
    held = exists().where(Lease.comparison_id == comparison_id, Lease.state == "live")
    return bool(session.scalar(select(or_(judged, held))))


def is_continued(session: Session, item_id: int) -> bool:
    return bool(session.scalar(select(continued()).where(Comparison.id == item_id)))


def make_room(session: Session, comparison_id: int) -> None:
    """Give a locked calibration item a place for one more labeler."""
    taken = Comparison.judgment_count + Comparison.lease_count
    full = update(Comparison).where(Comparison.id == comparison_id, taken >= Comparison.overlap)
    session.execute(full.values(overlap=taken + 1), execution_options={"synchronize_session": False})


WINDOW = 50  # draw a repeat from this many answers: the newest that are old enough
_repeat = aliased(Comparison)


def to_repeat(session: Session, project_id: int, labeler_id: int, gap: int) -> int | None:
    """Draw one of the labeler's own comparisons that they judged at least `gap` answers ago.

    Excluded are comparisons that were repeated already, and those whose other answers the labeler has seen since.
    Comparisons judged under an older rubric are excluded too, because a different answer may be right now.
    """
    last = _newest(labeler_id, gap + LOOK_BACK)
    old_enough = (
        select(last.c.comparison_id, last.c.swapped, last.c.preference, last.c.rubric_id)
        .join(Comparison, Comparison.id == last.c.comparison_id)
        .where(last.c.superseded_at.is_(None), Comparison.project_id == project_id)
        .where(Comparison.offered)  # one of a ranking's pairs: the ranking was one task
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
    """Tell whether the labeler saw B first when they last judged this comparison; None if they never did."""
    query = select(Judgment.swapped).where(Judgment.comparison_id == comparison_id, Judgment.labeler_id == labeler_id)
    return session.scalar(query.order_by(Judgment.id.desc()).limit(1))


# ---- a labeler's calibration record ----------------------------------------------------------------------------------


class Record(NamedTuple):
    """The labeler's newest answers to calibration items, and how many took the right side. "Cannot judge" is wrong."""

    answers: int
    right: int


def calibration_record(session: Session, project_id: int, labeler_id: int, window: int) -> Record:
    """Return the record since an admin last unpaused the labeler.

    At most `window` answers count, among the last `LOOK_BACK` judgments.
    """
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
    """Return the labeler's row in the project, locked; create it if there is none."""
    key = {"project_id": project_id, "labeler_id": labeler_id}
    session.execute(insert(ProjectLabeler).values(key).on_conflict_do_nothing())
    return session.get_one(ProjectLabeler, key, with_for_update=True, populate_existing=True)


def paused_by_calibration(session: Session, project_id: int) -> list[User]:
    """Return labelers whom the service itself has paused, sorted by name."""
    paused = ProjectLabeler.project_id == project_id, ProjectLabeler.state == "paused"
    found = select(User).join(ProjectLabeler, ProjectLabeler.labeler_id == User.id)
    return list(session.scalars(found.where(*paused, ProjectLabeler.changed_by.is_(None)).order_by(User.name)))


# ---- items -----------------------------------------------------------------------------------------------------------


def _same_pair(item: Comparison) -> list[Condition]:
    """Conditions for items about the same pair: copies of one comparison, which may itself be an item."""
    root = item.repeat_of_id or item.id
    return [or_(Comparison.id == root, Comparison.repeat_of_id == root), Comparison.gold.is_not(None)]


def lock_kin(session: Session, item: Comparison) -> list[Comparison]:
    """Return the item and its copies under other rubric versions that have the answer on the same side, locked."""
    kin = select(Comparison).where(*_same_pair(item), func.sign(Comparison.gold) == func.sign(item.gold))
    locked = kin.order_by(Comparison.id).with_for_update(key_share=True)
    return list(session.scalars(locked, execution_options={"populate_existing": True}))


def in_use(session: Session, item: Comparison) -> int | None:
    """Return the id of an item in use that asks about the same pair."""
    query = select(Comparison.id).where(*_same_pair(item), Comparison.state == "open")
    return session.scalar(query.order_by(Comparison.id.desc()).limit(1))


def with_answer(session: Session, item: Comparison, gold: int) -> int | None:
    """Return the id of an item that asks about the same pair and has its answer on the side of gold."""
    side = (gold > 0) - (gold < 0)
    query = select(Comparison.id).where(*_same_pair(item), func.sign(Comparison.gold) == side)
    return session.scalar(query.order_by(Comparison.id.desc()).limit(1))
