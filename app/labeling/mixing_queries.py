"""SQL of what is mixed into a labeler's tasks unseen: calibration items, and repeats of their own answers."""

from typing import NamedTuple

from sqlalchemy import BigInteger, cast, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.labeling.claim_queries import Condition, judged_by, leased_to, literally
from app.models import Comparison, Judgment, Lease, ProjectLabeler, Rubric
from app.models.comparison import IN_CALIBRATION


def claim_calibration(session: Session, project_id: int, labeler_id: int) -> int | None:
    """Locks a calibration item that this labeler has not seen and makes room for them; everybody gets each item once.

    The search begins at a random one, so that people meet them in different orders.
    """
    items: list[Condition] = [Comparison.project_id == project_id, literally(IN_CALIBRATION)]
    low, high = func.min(Comparison.id), func.max(Comparison.id)
    drawn = cast(func.floor(func.random() * (high - low + 1)), BigInteger)
    start = session.scalar(select(low + drawn).where(*items))
    if start is None:
        return None
    seen_before = exists().where(Judgment.comparison_id == Comparison.repeat_of_id, Judgment.labeler_id == labeler_id)
    # Whoever reviewed the comparison that it is a copy of knows the answer.
    reviewed = exists().where(
        Lease.comparison_id == Comparison.repeat_of_id, Lease.labeler_id == labeler_id, Lease.state == "recused"
    )
    fresh = [~judged_by(labeler_id), ~leased_to(labeler_id, "live", "skipped", "recused"), ~seen_before, ~reviewed]
    for part in (Comparison.id >= start, Comparison.id < start):
        query = select(Comparison.id).where(*items, part, *fresh).order_by(Comparison.id).limit(1)
        found = session.scalar(query.with_for_update(skip_locked=True, of=Comparison))
        if found is not None:
            make_room(session, found)
            return found
    return None


def make_room(session: Session, comparison_id: int) -> None:
    """Gives a calibration item, which is locked, a place for one more labeler."""
    taken = Comparison.judgment_count + Comparison.lease_count
    full = update(Comparison).where(Comparison.id == comparison_id, taken >= Comparison.overlap)
    session.execute(full.values(overlap=taken + 1), execution_options={"synchronize_session": False})


WINDOW = 50  # a repeat is drawn from so many answers: those that just became old enough


def to_repeat(session: Session, project_id: int, labeler_id: int, gap: int) -> int | None:
    """A comparison of the labeler's own whose answer at least `gap` others of theirs followed, drawn at random.

    Not one repeated already, nor one judged under an older rubric, by which the answer may rightly be another.
    """
    newest = (
        select(Rubric.id)
        .where(Rubric.project_id == project_id, Rubric.version.is_not(None))
        .order_by(Rubric.version.desc())
        .limit(1)
        .scalar_subquery()
    )
    old_enough = (
        select(Judgment.comparison_id, Judgment.swapped, Judgment.preference, Judgment.rubric_id)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None))
        .where(Comparison.project_id == project_id, Comparison.offered)  # of a ranking's pairs one: it was one task
        .order_by(Judgment.created_at.desc())
        .offset(gap)
        .limit(WINDOW)
        .subquery()
    )
    own = old_enough.c
    repeat = aliased(Comparison)
    repeated = exists().where(repeat.repeat_of_id == own.comparison_id, repeat.labeler_id == labeler_id)
    query = (
        select(own.comparison_id)
        .join(Comparison, Comparison.id == own.comparison_id)
        .where(own.preference.is_not(None), own.swapped.is_not(None), own.rubric_id == newest, ~repeated)
        .where(Comparison.purpose.in_(("train", "heldout", "human_eval")), Comparison.ranking_id.is_(None))
        .where(Comparison.state != "withdrawn")
        .order_by(func.random())
        .limit(1)
    )
    return session.scalar(query)


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
    """Of at most `window` answers since an admin last let the labeler go on."""
    since = (
        select(ProjectLabeler.counted_from)
        .where(ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id == labeler_id)
        .scalar_subquery()
    )
    newest = (
        select((func.sign(Judgment.preference) == func.sign(Comparison.gold)).label("is_right"))
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, literally(IN_CALIBRATION))
        .where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None))
        .where(Judgment.created_at > func.coalesce(since, func.to_timestamp(0)))
        .order_by(Judgment.created_at.desc(), Judgment.id.desc())
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


def copy_of(session: Session, comparison_id: int) -> Comparison | None:
    """The calibration item that was made from a comparison."""
    query = select(Comparison).where(Comparison.repeat_of_id == comparison_id, Comparison.gold.is_not(None))
    return session.scalars(query.order_by(Comparison.id.desc()).limit(1)).one_or_none()
