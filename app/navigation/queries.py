"""SQL of the navigation: how much waits behind its entries, and one's projects, in one statement."""

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app.db import prepared
from app.models import Comparison, Demonstration, DemonstrationTask, Project, ProjectLabeler, ProjectMember, Round
from app.models.comparison import IN_CONFLICT, IN_DISAGREEMENT, IS_FLAGGED, IS_REQUESTED

MOST = 100  # counted; more is shown as 99+
PROJECTS = 30  # of one's own that the switcher lists


class Own(NamedTuple):
    slug: str
    name: str


class Waiting(NamedTuple):
    """How many wait, each counted up to `MOST`: comparisons for a reviewer, demonstrations for a reviewer, labelers
    whom the service has paused, rounds for an operator's decision, and prompts for an answer by this labeler.

    projects: the user's, this one included, by name; at most `PROJECTS`.
    """

    review: int
    demonstrations: int
    paused: int
    rounds: int
    to_write: int
    projects: list[Own]


_PROJECT = bindparam("project_id", type_=BigInteger)
_USER = bindparam("user_id", type_=BigInteger)


def _up_to(rows: Select[Any], most: int = MOST) -> ColumnElement[int]:
    return select(func.count()).select_from(rows.limit(most).subquery()).scalar_subquery()


def _if(role: str, count: ColumnElement[int]) -> ColumnElement[int]:
    """The count for whoever has the role; for others nothing is counted."""
    return case((bindparam(role, type_=Boolean), count), else_=literal(0, Integer))


def _review() -> ColumnElement[int]:
    """The sum of the four queues; each has an index that holds exactly its comparisons."""
    total: ColumnElement[int] = literal(0, Integer)
    for condition in (IN_DISAGREEMENT, IN_CONFLICT, IS_FLAGGED, IS_REQUESTED):
        total = total + _up_to(select(Comparison.id).where(Comparison.project_id == _PROJECT, text(condition)))
    return total


def _rounds() -> ColumnElement[int]:
    """1 if the newest round failed, or made a policy that nobody has decided about."""
    newest = select(Round).where(Round.project_id == _PROJECT).order_by(Round.number.desc()).limit(1).subquery()
    undecided = and_(newest.c.state == "done", newest.c.policy_after_id.is_not(None), newest.c.adopted.is_(None))
    return _up_to(select(newest.c.id).where(or_(newest.c.state == "failed", undecided)), 1)


def _waiting() -> Select[Any]:
    pending = select(Demonstration.id).where(Demonstration.project_id == _PROJECT, Demonstration.state == "pending")
    by_the_service = ProjectLabeler.state == "paused", ProjectLabeler.changed_by.is_(None)
    paused = select(ProjectLabeler.labeler_id).where(ProjectLabeler.project_id == _PROJECT, *by_the_service)
    free = or_(DemonstrationTask.labeler_id.is_(None), DemonstrationTask.expires_at < func.now())
    to_write = select(DemonstrationTask.id).where(
        DemonstrationTask.project_id == _PROJECT, or_(free, DemonstrationTask.labeler_id == _USER)
    )
    mine = (
        select(Project.slug, Project.name)
        .join(ProjectMember, ProjectMember.project_id == Project.id)
        .where(ProjectMember.user_id == _USER, Project.archived_at.is_(None))
        .order_by(Project.name, Project.id)
        .limit(PROJECTS)
        .subquery()
    )
    listed = select(func.jsonb_agg(func.jsonb_build_array(mine.c.slug, mine.c.name), type_=JSONB)).scalar_subquery()
    return select(
        _if("admin", _review()),
        _if("admin", _up_to(pending)),
        _if("admin", _up_to(paused)),
        _if("operator", _rounds()),
        _if("labeler", _up_to(to_write)),
        listed,
    )


_WAITING = prepared(_waiting())


def waiting(session: Session, project_id: int, user_id: int, roles: frozenset[str]) -> Waiting:
    """What waits in a project for somebody with these roles. One statement, each count through an index."""
    values = {role: role in roles for role in ("admin", "operator", "labeler")}
    row = session.execute(_WAITING, values | {"project_id": project_id, "user_id": user_id}).one()
    *counts, projects = row
    return Waiting._make([*counts, [Own(*each) for each in projects or []]])
