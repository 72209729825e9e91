"""Who can still answer a comparison, as expressions of SQL."""

from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, case, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute

from app.models import Comparison, Judgment, LabelerGroupMember, Lease, ProjectLabeler, User

Number = int | InstrumentedAttribute[Any]


def may_label(project_id: Number) -> list[ColumnElement[bool]]:
    """Of users: they are given tasks in the project."""
    stopped = exists().where(
        ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id == User.id, ProjectLabeler.state != "active"
    )
    is_labeler = User.roles.contains(["labeler"])
    return [User.is_active.is_(True), is_labeler, User.kind != "imported", ~stopped.correlate(User, Comparison)]


def members_left(group_id: Number) -> ScalarSelect[int]:
    """Of comparisons: how many of the group can answer it."""
    return _members(group_id).with_only_columns(func.count()).scalar_subquery()


def is_member_left(group_id: Number) -> ColumnElement[bool]:
    """Of comparisons: somebody of the group can answer it."""
    return exists(_members(group_id))


def left_of_kept() -> ColumnElement[int | None]:
    """Of comparisons: how many of those it is kept for can answer it; none where it is open to everybody."""
    person = _able().where(User.id == Comparison.labeler_id).with_only_columns(func.count()).scalar_subquery()
    return case(
        (Comparison.labeler_id.is_not(None), person),
        (Comparison.group_id.is_not(None), members_left(Comparison.group_id)),
    )


def _members(group_id: Number) -> Select[int]:
    of_group = _able().join(LabelerGroupMember, LabelerGroupMember.labeler_id == User.id)
    return of_group.where(LabelerGroupMember.group_id == group_id)


def _able() -> Select[int]:
    """Those who may label and have neither judged the comparison nor given it up. What they took back, they may say
    anew."""
    judged = exists().where(
        Judgment.comparison_id == Comparison.id,
        Judgment.labeler_id == User.id,
        Judgment.superseded_for.is_distinct_from("undone"),
    )
    recused = exists().where(
        Lease.comparison_id == Comparison.id, Lease.labeler_id == User.id, Lease.state == "recused"
    )
    able = select(User.id).select_from(User).where(*may_label(Comparison.project_id))
    able = able.where(~judged.correlate(User, Comparison), ~recused.correlate(User, Comparison))
    return able.correlate(Comparison)
