"""Handing out comparisons: the next task, the leases on it, and what there is to say when there is none."""

import secrets
from datetime import timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from app.errors import Forbidden, NotFound
from app.labeling import queries
from app.labeling.queries import Position, Task
from app.models import Lease, Project, User

# Counting further would cost time and tell a labeler nothing.
COUNT_LIMIT = 500

Reason = Literal["busy", "skipped", "sampling", "nothing", "judged", "taken", "finished"]


class Progress(NamedTuple):
    """done: judgments today (UTC), in all projects. left: comparisons to come, with the one on the desk; counted up to
    `COUNT_LIMIT`."""

    done: int
    left: int

    @property
    def left_is_exact(self) -> bool:
        return self.left < COUNT_LIMIT


class Idle(NamedTuple):
    """Why there is no task.

    busy: others took the last ones this moment, ask again. skipped: only the one just skipped is left. sampling: a
    model is writing new responses. nothing: the project holds no comparison. judged: what is open waits for other
    people. taken: what is open is on other people's desks. finished: everything has its judgments.
    """

    reason: Reason
    sampled: int = 0
    to_sample: int = 0


def next_task(
    session: Session,
    project: Project,
    labeler: User,
    *,
    again: UUID | None = None,
    skipped: Position | None = None,
    beside: UUID | None = None,
) -> Task | None:
    """The labeler's task: the one on the desk (a second tab or a reload sees the same), else the next in the queue.

    Args:
        again: a lease of theirs whose comparison comes first if it is still to be had, with the sides as they were.
        skipped: where they skipped; that comparison is not given again at once.
        beside: the lease of the card on the desk, when the one after it is wanted ahead. A labeler so holds two leases
            at most, and any tab sees the same two in the same order.

    Returns:
        None when there is nothing for this labeler now; `idle` says why.
    """
    lasting = timedelta(minutes=project.lease_minutes)
    queries.lock_labeler(session, labeler.id)
    queries.expire_leases(session)
    held = queries.renew_live_leases(session, project.id, labeler.id, lasting)
    if again is not None and again in held:
        return queries.task(session, again)
    chosen = _claim_again(session, project, labeler, again)
    if chosen is None:
        if lease_id := next((held_id for held_id in held if held_id != beside), None):
            return queries.task(session, lease_id)
        chosen = _claim_next(session, project, labeler, skipped)
    if chosen is None:
        return None
    comparison_id, swapped = chosen
    return queries.task(session, queries.add_lease(session, comparison_id, labeler.id, swapped, lasting))


def _claim_again(session: Session, project: Project, labeler: User, lease_id: UUID | None) -> tuple[int, bool] | None:
    before = queries.lease_on(session, lease_id, labeler.id) if lease_id else None
    if before and queries.claim_one(session, project.id, labeler.id, before[0]) is not None:
        return before
    return None


def _claim_next(session: Session, project: Project, labeler: User, skipped: Position | None) -> tuple[int, bool] | None:
    after = skipped or queries.last_judged(session, project.id, labeler.id)
    except_id = skipped.comparison_id if skipped else None
    comparison_id = queries.claim(session, project.id, labeler.id, after=after, except_id=except_id)
    return None if comparison_id is None else (comparison_id, bool(secrets.randbits(1)))


def own_lease(session: Session, project: Project, lease_id: UUID, labeler: User) -> Lease:
    """A lease that this labeler has or had.

    Raises:
        NotFound: no such lease in this project.
        Forbidden: another labeler's lease.
    """
    lease = queries.find_lease(session, project.id, lease_id)
    if lease is None:
        raise NotFound("There is no such task in this project.", "Open the labeling page to get the next one.")
    if lease.labeler_id != labeler.id:
        raise Forbidden("This task was given to somebody else.", "Open the labeling page to get one of your own.")
    return lease


def renew(session: Session, project: Project, labeler: User) -> list[UUID]:
    """Makes the leases that the labeler holds in this project last again from now on; returns them, oldest first."""
    queries.lock_labeler(session, labeler.id)
    return queries.renew_live_leases(session, project.id, labeler.id, timedelta(minutes=project.lease_minutes))


def skip(session: Session, project: Project, lease_id: UUID, labeler: User, reason: str) -> Position:
    """Gives a task back to the queue because the labeler does not want it; returns where in the queue it is. Twice
    changes nothing.

    Raises:
        NotFound, Forbidden: as in `own_lease`.
    """
    return _give_back(session, project, lease_id, labeler, "skipped", reason)


def release(session: Session, project: Project, lease_id: UUID, labeler: User) -> Position:
    """Gives back a task that the labeler has not looked at; otherwise as `skip`."""
    return _give_back(session, project, lease_id, labeler, "released", "")


def _give_back(session: Session, project: Project, lease_id: UUID, labeler: User, state: str, reason: str) -> Position:
    queries.lock_labeler(session, labeler.id)
    lease = own_lease(session, project, lease_id, labeler)
    comparison = queries.lock_comparison(session, lease.comparison_id)
    session.refresh(lease, with_for_update=True)
    if lease.state == "live":
        lease.state, lease.reason = state, reason
        session.flush()
    return Position(comparison.priority, comparison.id)


def expire_leases(session: Session) -> int:
    """Returns tasks held past their time to the queue, of whatever project; returns how many (some hundred at most)."""
    return queries.expire_leases(session)


def progress(session: Session, project: Project, labeler: User) -> Progress:
    done = queries.judged_today(session, labeler.id)
    held = queries.held(session, project.id, labeler.id)
    after = queries.last_judged(session, project.id, labeler.id)
    return Progress(done, held + queries.remaining(session, project.id, labeler.id, after, COUNT_LIMIT - held))


def is_same_comparison(session: Session, task: Task, lease_id: UUID) -> bool:
    """Whether the task is about what that lease was about."""
    lease = session.get(Lease, lease_id)
    return lease is not None and lease.comparison_id == task.position.comparison_id


def idle(session: Session, project: Project, labeler: User, skipped: Position | None = None) -> Idle:
    """Why `next_task` gave nothing."""
    except_id = skipped.comparison_id if skipped else None
    if queries.is_available(session, project.id, labeler.id, except_id=except_id):
        return Idle("busy")
    if skipped and queries.is_available(session, project.id, labeler.id, except_id=None):
        return Idle("skipped")
    if sampling := queries.sampling(session, project.id):
        return Idle("sampling", *sampling)
    any_at_all, any_open, any_with_room = queries.open_counts(session, project.id)
    if not any_at_all:
        return Idle("nothing")
    if any_with_room:
        return Idle("judged")
    return Idle("taken" if any_open else "finished")


def project_with_work(session: Session, labeler: User) -> str | None:
    """Slug of a project that has a task for this labeler."""
    return queries.project_with_work(session, labeler.id)
