"""Handing out tasks: the one on the labeler's desk, and the next one.

The gate decides whether the labeler may work, `queries` finds the tasks they hold, `choosing` picks the next
comparison, and `leases` leases it.
"""

from uuid import UUID

from sqlalchemy.orm import Session

from app.access import gate, gate_queries
from app.labeling import choosing, leases, queries
from app.labeling.leases import Sides
from app.labeling.queries import Position, Task
from app.models import Lease, Project, User


def next_task(
    session: Session,
    project: Project,
    labeler: User,
    *,
    again: UUID | None = None,
    skipped: Position | None = None,
    beside: UUID | None = None,
) -> Task | None:
    """Return the labeler's task: the one on the desk if there is one, so a second tab or a reload shows the same card;
    otherwise the next one.

    Args:
        again: a lease of theirs whose comparison comes first if it is still available, with the same sides.
        skipped: the position of a comparison they just skipped, which is not offered again right away.
        beside: the lease of the card on the desk; set to preload the card after it. A labeler then holds at most two
            leases, and every tab sees the same two in the same order.

    Returns:
        None when there is nothing for this labeler now; `outlook.idle` says why.
    """
    gate_queries.lock_labeler(session, labeler.id)
    closed = gate.closed(session, project, labeler)
    if closed and closed.reason != "quiz":
        queries.end_leases(session, project.id, labeler.id)
        return None
    held = queries.renew_live_leases(session, project.id, labeler.id, leases.lasting(project))
    if again is not None and again in held:
        return queries.task(session, again)
    if again is not None and (task := _give_again(session, project, labeler, again, held)):
        return task
    if lease_id := next((held_id for held_id in held if held_id != beside), None):
        return queries.task(session, lease_id)
    # When a newer quiz is due, labelers may finish the tasks they hold but get no new ones.
    task = None if closed else _give_next(session, project, labeler, skipped.comparison_id if skipped else None)
    if task is not None and task.lease_id == beside:  # the desk's lease had expired, and this renewed it
        return next_task(session, project, labeler, beside=beside)
    return task


def following(session: Session, project: Project, labeler: User, desk: UUID) -> tuple[bool, Task | None]:
    """Return whether the card on the desk is still the labeler's, and the card after it.

    Called in the transaction of an answer. The card is None if nothing follows, or if the desk's card is no longer
    theirs.
    """
    closed = gate.closed(session, project, labeler)  # again: the answer itself may have paused them
    if closed and closed.reason != "quiz":
        return False, None
    held = queries.renew_live_leases(session, project.id, labeler.id, leases.lasting(project))
    if desk not in held:
        return False, None
    if lease_id := next((held_id for held_id in held if held_id != desk), None):
        return True, queries.task(session, lease_id)
    return True, None if closed else _give_next(session, project, labeler)


def _give_again(session: Session, project: Project, labeler: User, lease_id: UUID, held: list[UUID]) -> Task | None:
    """Lease that lease's comparison again if it is available. The preloaded card goes back to make room for it."""
    before = session.get(Lease, lease_id)
    if before is None or before.labeler_id != labeler.id:
        return None
    comparison = choosing.choose_this(session, project, labeler, before.comparison_id)
    if comparison is None:
        return None
    queries.release_leases(session, held[1:])
    return leases.give(session, project, labeler, comparison, sides=Sides(before.swapped, before.shown))


def _give_next(session: Session, project: Project, labeler: User, except_id: int | None = None) -> Task | None:
    comparison, places = choosing.choose(session, project, labeler, except_id)
    if comparison is None:
        queries.save_places(session, project.id, labeler.id, places)
        return None
    return leases.give(session, project, labeler, comparison, places)
