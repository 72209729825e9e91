"""SQL of the audit log's page. Each statement follows an index, so it takes as long at a million events as at ten."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.models import AuditEvent, User

PAGE = 50
NOBODY = 0  # in the filter: what the service did by itself


class Seen(NamedTuple):
    """An event and who caused it; none: the service itself."""

    event: AuditEvent
    by: str | None


class Person(NamedTuple):
    id: int
    name: str


def events(session: Session, project_id: int, action: str, person: int | None, before: int | None) -> list[Seen]:
    """The newest `PAGE` events of a project and one more, if there is one.

    Args:
        action: events of this kind; empty: of all. person: by this user, `NOBODY` by the service; none: by anybody.
        before: events with a smaller id.
    """
    query = (
        select(AuditEvent, User.name)
        .outerjoin(User, User.id == AuditEvent.actor_id)
        .where(AuditEvent.project_id == project_id)
        .order_by(AuditEvent.id.desc())
        .limit(PAGE + 1)
    )
    if action:
        query = query.where(AuditEvent.action == action)
    if person is not None:
        query = query.where(AuditEvent.actor_id == person if person else AuditEvent.actor_id.is_(None))
    if before is not None:
        query = query.where(AuditEvent.id < before)
    return [Seen(*row) for row in session.execute(query)]


def actions(session: Session, project_id: int) -> list[str]:
    """The kinds of events that a project has, by name."""
    return list(_different(session, project_id, AuditEvent.action))


def people(session: Session, project_id: int) -> list[Person]:
    """Everybody who caused an event in a project, by name."""
    ids = _different(session, project_id, AuditEvent.actor_id)
    query = select(User.id, User.name).where(User.id.in_(ids)).order_by(User.name, User.id)
    return [Person(*row) for row in session.execute(query)]


def _different(session: Session, project_id: int, column: InstrumentedAttribute[Any]) -> Sequence[Any]:
    """The values of a column in a project, in order. Steps from one to the next, where DISTINCT would read all."""
    first = select(func.min(column).label("value")).where(AuditEvent.project_id == project_id)
    found = first.cte("found", recursive=True)
    following = select(func.min(column)).where(AuditEvent.project_id == project_id, column > found.c.value)
    steps = found.union_all(select(following.scalar_subquery()).where(found.c.value.is_not(None)))
    return session.scalars(select(steps.c.value).where(steps.c.value.is_not(None))).all()
