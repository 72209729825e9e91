"""SQL conditions that decide which comparisons a labeler may be given."""

import re
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    ColumnElement,
    Select,
    TextClause,
    and_,
    any_,
    exists,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.orm import aliased

from app.models import Comparison, Judgment, Lease
from app.models.comparison import AVAILABLE, IN_CALIBRATION

Condition = ColumnElement[bool] | TextClause
Id = int | BindParameter[int]
# Created once: creating an alias takes longer than building the query that uses it.
_kin, _newer, _other = aliased(Comparison), aliased(Comparison), aliased(Comparison)
_own, _theirs, _before, _leased = aliased(Lease), aliased(Lease), aliased(Lease), aliased(Lease)

# Look at no more than this many tasks that others were given after a task went back.
LATER = 1000


def literally(predicate: str) -> TextClause:
    """Return an index's predicate word for word; the planner uses the index only then."""
    columns = r"\b(state|offered|judgment_count|lease_count|overlap|gold|labeler_id|group_id)\b(?!')"
    return text(re.sub(columns, r"comparison.\1", predicate))


# Calibration items and repeats. They are in no queue and are sometimes given instead of a queued comparison.
MIXED_IN = Comparison.gold.is_not(None) | (Comparison.purpose == "repeat")


def stands_in_the_way() -> ColumnElement[bool]:
    """Condition on judgments: the labeler is not asked again, even if somebody else superseded the judgment.

    A judgment that they took back or changed themselves does not count; the one that replaced it does.
    """
    return func.coalesce(Judgment.superseded_for, "").not_in(("edited", "undone"))


def is_whole_answer() -> ColumnElement[bool]:
    """Condition on judgments joined with their comparisons: the judgment stands for the labeler's whole answer.

    An answer to a ranking is a judgment on each of its pairs, and the judgment on the leased pair stands for all of
    them. Other pairs may be offered later, if a reviewer asks about them.
    """
    leased = exists().where(_leased.id == Judgment.lease_id, _leased.comparison_id == Judgment.comparison_id)
    return or_(leased, and_(Judgment.lease_id.is_(None), Comparison.offered))


def judged_by(labeler_id: Id) -> ColumnElement[bool]:
    own = Judgment.comparison_id == Comparison.id, Judgment.labeler_id == labeler_id
    return _looked_up(select(Judgment.id).where(*own, stands_in_the_way()))


def leased_to(labeler_id: Id, *states: str) -> ColumnElement[bool]:
    own = Lease.comparison_id == Comparison.id, Lease.labeler_id == labeler_id
    return _looked_up(select(Lease.id).where(*own, Lease.state.in_(states)))


def met(labeler_id: int, *states: str) -> ColumnElement[bool]:
    """Condition on calibration items: the labeler has judged this pair, or has a lease on it in one of these states.

    The pair also counts as met through the comparison that the item was made from, or through the item under an older
    rubric. A labeler who reviewed one of these knows the answer.
    """
    root = func.coalesce(Comparison.repeat_of_id, Comparison.id)
    judged = select(Judgment.id).join(_kin, _kin.id == Judgment.comparison_id)
    judged = judged.where(Judgment.labeler_id == labeler_id, stands_in_the_way())
    leased = select(Lease.id).join(_kin, _kin.id == Lease.comparison_id)
    leased = leased.where(Lease.labeler_id == labeler_id, Lease.state.in_(states))
    same = or_(_kin.id == root, _kin.repeat_of_id == root)
    return or_(_looked_up(judged.where(same)), _looked_up(leased.where(same)))


def continued() -> ColumnElement[bool]:
    """Condition on calibration items: a copy under a newer rubric has replaced the item, so nobody is given it."""
    root = func.coalesce(Comparison.repeat_of_id, Comparison.id)
    same_side = func.sign(_newer.gold) == func.sign(Comparison.gold)
    return exists().where(_newer.repeat_of_id == root, _newer.id > Comparison.id, same_side)


def passed_over(labeler_id: int, groups: list[int]) -> ColumnElement[bool]:
    """Condition on calibration items and repeats that the labeler gave back: an ordinary task would be gone by now.

    That is so if others have since filled all places of a task that this labeler could have been given instead.

    Nobody else is given a labeler's items and repeats. If these always came again while ordinary tasks are taken by
    others, a labeler who leaves a task and comes back later would see which kind it was.
    """
    mine = _own.comparison_id == Comparison.id, _own.labeler_id == labeler_id
    given, ended = (
        select(func.max(column)).where(*mine).correlate(Comparison).scalar_subquery()
        for column in (_own.created_at, _own.expires_at)
    )
    later = select(_theirs.comparison_id, _theirs.labeler_id).where(_theirs.created_at > ended)
    since = later.order_by(_theirs.created_at).limit(LATER).correlate(Comparison).subquery()
    # Tasks that the labeler already had do not count: judged, skipped, or given back before this one was given.
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
    """Tell whether rows exist, by an index lookup for each comparison.

    Without the OFFSET the planner may instead read everything that the labeler has ever judged.
    """
    return exists(rows.offset(0))


def not_done(labeler_id: Id) -> list[ColumnElement[bool]]:
    """The labeler has neither judged the comparison nor given it up. `next_skipped` brings back what they skipped."""
    return [~judged_by(labeler_id), ~leased_to(labeler_id, "skipped", "recused")]


def free(labeler_id: Id) -> list[ColumnElement[bool]]:
    return [~judged_by(labeler_id), ~leased_to(labeler_id, "live", "skipped", "recused")]


def open_to(labeler_id: int, groups: list[int]) -> list[Condition]:
    """Conditions on comparisons with room that are not kept for somebody else.

    Calibration items always qualify, because room can be made for them.
    """
    return [
        or_(literally(f"({IN_CALIBRATION})"), literally(f"({AVAILABLE})")),
        or_(Comparison.labeler_id.is_(None), Comparison.labeler_id == labeler_id),
        or_(Comparison.group_id.is_(None), Comparison.group_id == any_(literal(groups, ARRAY(BigInteger)))),
    ]


def leased_otherwise(labeler_id: int) -> ColumnElement[bool]:
    """Tell whether the labeler holds the skipped comparison, gave it up, or skipped it again later."""
    other = aliased(Lease)
    own = other.comparison_id == Lease.comparison_id, other.labeler_id == labeler_id
    later = (other.state == "skipped") & (other.created_at > Lease.created_at)
    return exists().where(*own, or_(other.state.in_(("live", "recused")), later))
