"""SQL of a project's groups of labelers."""

from typing import NamedTuple

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.access.queries import is_labeler_of
from app.models import Comparison, LabelerGroup, LabelerGroupMember, User


class Member(NamedTuple):
    id: int
    name: str
    kind: str


class Group(NamedTuple):
    id: int
    name: str
    members: list[Member]
    kept: int  # open comparisons that only the group is offered


def groups(session: Session, project_id: int) -> list[Group]:
    kept = (
        select(func.count())
        .where(Comparison.group_id == LabelerGroup.id, Comparison.state == "open")
        .correlate(LabelerGroup)
        .scalar_subquery()
    )
    found = {
        id_: Group(id_, name, [], n)
        for id_, name, n in session.execute(
            select(LabelerGroup.id, LabelerGroup.name, kept)
            .where(LabelerGroup.project_id == project_id)
            .order_by(LabelerGroup.name)
        )
    }
    members = (
        select(LabelerGroupMember.group_id, User.id, User.name, User.kind)
        .join(User, User.id == LabelerGroupMember.labeler_id)
        .where(LabelerGroupMember.group_id.in_(found))
        .order_by(User.name, User.id)
    )
    for group_id, id_, name, kind in session.execute(members):
        found[group_id].members.append(Member(id_, name, kind))
    return list(found.values())


def group(session: Session, project_id: int, group_id: int) -> LabelerGroup | None:
    wanted = select(LabelerGroup).where(LabelerGroup.id == group_id, LabelerGroup.project_id == project_id)
    return session.scalars(wanted).one_or_none()


def groups_of(session: Session, project_id: int, labeler_id: int) -> list[str]:
    found = (
        select(LabelerGroup.name)
        .join(LabelerGroupMember, LabelerGroupMember.group_id == LabelerGroup.id)
        .where(LabelerGroup.project_id == project_id, LabelerGroupMember.labeler_id == labeler_id)
    )
    return list(session.scalars(found.order_by(LabelerGroup.name)))


def active_labelers(session: Session, project_id: int) -> list[User]:
    """Return everybody who can be given work in the project."""
    active = select(User).where(User.is_active, is_labeler_of(project_id))
    return list(session.scalars(active.order_by(User.name, User.id)))


def is_kept_for(session: Session, group_id: int) -> bool:
    return bool(session.scalar(select(exists().where(Comparison.group_id == group_id))))


def add_member(session: Session, group_id: int, labeler_id: int) -> None:
    values = {"group_id": group_id, "labeler_id": labeler_id}
    session.execute(insert(LabelerGroupMember).values(values).on_conflict_do_nothing())


def remove_member(session: Session, group_id: int, labeler_id: int) -> None:
    session.execute(
        delete(LabelerGroupMember).where(
            LabelerGroupMember.group_id == group_id, LabelerGroupMember.labeler_id == labeler_id
        )
    )


def leave_groups(session: Session, project_id: int, labeler_id: int) -> None:
    own = select(LabelerGroup.id).where(LabelerGroup.project_id == project_id)
    session.execute(
        delete(LabelerGroupMember).where(
            LabelerGroupMember.labeler_id == labeler_id, LabelerGroupMember.group_id.in_(own)
        )
    )
