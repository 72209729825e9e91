"""Leases: a labeler's right to judge a comparison for a limited time. Granting, renewing and returning them."""

import secrets
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.access import gate, gate_queries
from app.errors import Forbidden, NotFound
from app.labeling import mixing_queries, queries
from app.labeling.choosing import Places
from app.labeling.queries import Position, Task
from app.models import Comparison, Lease, Project, User


class Sides(NamedTuple):
    """The order of responses on the card; see Lease."""

    swapped: bool
    shown: list[int] | None = None


def give(
    session: Session,
    project: Project,
    labeler: User,
    comparison: Comparison,
    places: Places | None = None,
    sides: Sides | None = None,
) -> Task:
    """Lease a locked comparison to the labeler.

    Args:
        places: the labeler's places in the queues, saved in the same statement.
        sides: the order of the responses; None draws it now.
    """
    if comparison.gold is not None:  # a calibration item always has room for one more labeler
        mixing_queries.make_room(session, comparison.id)
    sides = sides or _draw(session, comparison, labeler)
    leased = queries.add_lease(
        session, project.id, labeler.id, lasting(project), places or {}, comparison_id=comparison.id, **sides._asdict()
    )
    return queries.task(session, leased.lease_id)._replace(is_new=not leased.again)


def _draw(session: Session, comparison: Comparison, labeler: User) -> Sides:
    """Draw the order in which the responses are shown; a repeat swaps the earlier order."""
    if comparison.ranking_id is not None:
        shown = queries.ranked_completions(session, comparison.ranking_id)
        secrets.SystemRandom().shuffle(shown)
        return Sides(swapped=False, shown=shown)
    before = None
    if comparison.purpose == "repeat" and comparison.repeat_of_id is not None:
        before = mixing_queries.seen_swapped(session, comparison.repeat_of_id, labeler.id)
    return Sides(swapped=bool(secrets.randbits(1)) if before is None else not before)


def lasting(project: Project) -> timedelta:
    return timedelta(minutes=project.lease_minutes)


def own_lease(session: Session, project: Project, lease_id: UUID, labeler: User) -> tuple[Lease, Comparison]:
    """Return a lease that this labeler has or had, and its comparison, locked.

    Raises:
        NotFound: no such lease in this project.
        Forbidden: another labeler's lease.
    """
    found = queries.lock_leased(session, project.id, lease_id)
    if found is None:
        raise NotFound("There is no such task in this project.", "Open the labeling page to get the next task.")
    lease, comparison = found
    if lease.labeler_id != labeler.id:
        raise Forbidden("This task was given to somebody else.", "Open the labeling page to get your own task.")
    return lease, comparison


def renew(session: Session, project: Project, labeler: User) -> list[UUID]:
    """Extend the labeler's leases in this project from now on; return them, oldest first.

    Leases of paused or removed labelers are not extended: a page left open would keep the tasks from others
    indefinitely.
    """
    gate_queries.lock_labeler(session, labeler.id)
    if gate.closed(session, project, labeler, begun=True):
        return []
    return queries.renew_live_leases(session, project.id, labeler.id, lasting(project))


def skip(session: Session, project: Project, lease_id: UUID, labeler: User, reason: str) -> Position:
    """Give a task back because the labeler does not want it; return its position in the queue. Repeating changes
    nothing.

    Raises:
        NotFound, Forbidden: as in `own_lease`.
    """
    return _give_back(session, project, lease_id, labeler, "skipped", reason)


def release(session: Session, project: Project, lease_id: UUID, labeler: User) -> Position:
    """Give back a task that the labeler has not looked at; otherwise like `skip`."""
    return _give_back(session, project, lease_id, labeler, "released", "")


def release_ahead(session: Session, project: Project, lease_id: UUID, labeler: User) -> None:
    """Release the task, unless it is the one on the labeler's desk."""
    gate_queries.lock_labeler(session, labeler.id)
    # before renew(), because this may wait for a lock: see `queries.renew_live_leases`
    own_lease(session, project, lease_id, labeler)
    if renew(session, project, labeler)[:1] != [lease_id]:
        release(session, project, lease_id, labeler)


def _give_back(session: Session, project: Project, lease_id: UUID, labeler: User, state: str, reason: str) -> Position:
    gate_queries.lock_labeler(session, labeler.id)
    lease, comparison = own_lease(session, project, lease_id, labeler)
    session.refresh(lease, with_for_update=True)
    if lease.state == "live":
        lease.state, lease.reason, lease.expires_at = state, reason, func.now()
        session.flush()
    return Position(comparison.priority, comparison.id)


def is_same_comparison(session: Session, task: Task, lease_id: UUID) -> bool:
    """Tell whether the task is about the same comparison as that lease."""
    lease = session.get(Lease, lease_id)
    return lease is not None and lease.comparison_id == task.position.comparison_id
