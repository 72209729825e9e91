"""Handing out comparisons: the next task, the leases on it, and what there is to say when there is none."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.access import gate, gate_queries
from app.errors import Forbidden, NotFound
from app.judging import LabelingSettings
from app.labeling import claim_queries, mixing, mixing_queries, queries
from app.labeling.claim_queries import Place, Standing
from app.labeling.queries import Position, Task
from app.models import Comparison, Lease, Project, User

Places = dict[int | None, Place]  # by group; none: the open queue

# Counting further would cost time and tell a labeler nothing.
COUNT_LIMIT = 500

Reason = Literal["paused", "removed", "quiz", "busy", "skipped", "sampling", "nothing", "kept", "taken", "finished"]


class Progress(NamedTuple):
    """done: judgments today (UTC), in all projects. left: comparisons to come, with the one on the desk; counted up to
    `COUNT_LIMIT`. mixed: others come between them unseen, and `left` is one less for each of these that was done."""

    done: int
    left: int
    mixed: bool = False

    @property
    def to_go(self) -> str:
        """`left` in words; where it is not exact, it changes three times in all."""
        if self.left >= COUNT_LIMIT:
            return f"{COUNT_LIMIT}+"
        if not self.mixed or not self.left:
            return str(self.left)
        return next((f"more than {n}" for n in (100, 50, 20) if self.left > n), "about 20 or fewer")


class Idle(NamedTuple):
    """Why there is no task.

    paused, removed: the labeler may not label here now; `message` says why. quiz: they have not passed it. busy:
    others took the last ones this moment, ask again. skipped: only the one just skipped is left. sampling: a model
    is writing new responses. nothing: the project holds no comparison. kept: what they have not judged is kept for
    others by name. taken: it is on other people's desks. finished: they have judged everything; whether that waits for
    others is not said, since more are asked where people disagree.
    """

    reason: Reason
    sampled: int = 0
    to_sample: int = 0
    message: str = ""


class Claim(NamedTuple):
    """A comparison to be leased, and how it is shown; see Lease."""

    comparison_id: int
    swapped: bool
    shown: list[int] | None = None


def next_task(
    session: Session,
    project: Project,
    labeler: User,
    *,
    again: UUID | None = None,
    skipped: Position | None = None,
    beside: UUID | None = None,
) -> Task | None:
    """The labeler's task: the one on the desk (a second tab or a reload sees the same), else the next one.

    First comes what is kept for the labeler or a group of theirs, then the open queue, and what they skipped at last.
    By chance a calibration item or a repeat comes in between; never where nothing new waits, or that would tell.

    Args:
        again: a lease of theirs whose comparison comes first if it is still to be had, with the sides as they were.
        skipped: where they skipped; that comparison is not given again at once.
        beside: the lease of the card on the desk, when the one after it is wanted ahead. A labeler so holds two leases
            at most, and any tab sees the same two in the same order.

    Returns:
        None when there is nothing for this labeler now; `idle` says why.
    """
    gate_queries.lock_labeler(session, labeler.id)
    closed = gate.closed(session, project, labeler)
    if closed and closed.reason != "quiz":
        queries.end_leases(session, project.id, labeler.id)
        return None
    held = queries.renew_live_leases(session, project.id, labeler.id, _lasting(project))
    if again is not None and again in held:
        return queries.task(session, again)
    if again is not None and (claim := _claim_again(session, project, labeler, again)):
        queries.release_leases(session, held[1:])
        return _given(session, project, labeler, claim, {})
    if lease_id := next((held_id for held_id in held if held_id != beside), None):
        return queries.task(session, lease_id)
    if closed:  # what was given before a newer quiz may be finished, but nothing follows
        return None
    return _give_next(session, project, labeler, skipped)


def following(session: Session, project: Project, labeler: User, desk: UUID) -> tuple[bool, Task | None]:
    """After an answer, in whose transaction this is asked: whether the card on the desk is still the labeler's, and the
    one after it; none where nothing follows, or the desk's is not theirs any more."""
    closed = gate.closed(session, project, labeler)  # once more: the answer itself may have paused them
    if closed and closed.reason != "quiz":
        return False, None
    held = queries.renew_live_leases(session, project.id, labeler.id, _lasting(project))
    if desk not in held:
        return False, None
    if lease_id := next((held_id for held_id in held if held_id != desk), None):
        return True, queries.task(session, lease_id)
    return True, None if closed else _give_next(session, project, labeler, None)


def _lasting(project: Project) -> timedelta:
    return timedelta(minutes=project.lease_minutes)


def _claim_again(session: Session, project: Project, labeler: User, lease_id: UUID) -> Claim | None:
    before = session.get(Lease, lease_id)
    if before is None or before.labeler_id != labeler.id:
        return None
    groups = claim_queries.standing(session, project.id, labeler.id).groups
    comparison = claim_queries.claim_one(session, project.id, labeler.id, groups, before.comparison_id)
    if comparison is None:
        return None
    _make_room(session, comparison)
    return Claim(comparison.id, before.swapped, before.shown)


def _give_next(session: Session, project: Project, labeler: User, skipped: Position | None) -> Task | None:
    standing = claim_queries.standing(session, project.id, labeler.id)
    places: Places = {}
    found = _claim_next(session, project, labeler, standing, skipped, places)
    if found is None:
        queries.save_places(session, project.id, labeler.id, places)
        return None
    return _given(session, project, labeler, _laid_out(session, found, labeler), places)


def _given(session: Session, project: Project, labeler: User, claim: Claim, places: Places) -> Task:
    leased = queries.add_lease(session, project.id, labeler.id, _lasting(project), places, **claim._asdict())
    return queries.task(session, leased.lease_id)._replace(is_new=not leased.again)


def _claim_next(
    session: Session, project: Project, labeler: User, standing: Standing, skipped: Position | None, places: Places
) -> Comparison | None:
    except_id = skipped.comparison_id if skipped else None
    settings = LabelingSettings.model_validate(project.labeling)
    found = mixing.claim_again(session, project, labeler, standing.groups) if mixing.is_on(settings) else None
    if found is not None:
        return found
    found = _find_new(session, project, labeler, standing, except_id, places)
    if found is None:
        return claim_queries.next_skipped(session, project.id, labeler.id, standing.groups, except_id=except_id)
    return mixing.claim(session, project, labeler, settings) or found


def _is_there(
    session: Session, project: Project, labeler: User, standing: Standing, except_id: int | None = None
) -> bool:
    """Whether there is anything to be given: new, given back, or skipped."""
    groups = standing.groups
    found = _find_new(session, project, labeler, standing, except_id)
    if found is None and mixing.is_on(LabelingSettings.model_validate(project.labeling)):
        found = mixing.claim_again(session, project, labeler, groups, lock=False)
    if found is None:
        found = claim_queries.next_skipped(session, project.id, labeler.id, groups, except_id=except_id, lock=False)
    return found is not None


def _find_new(
    session: Session,
    project: Project,
    labeler: User,
    standing: Standing,
    except_id: int | None,
    places: Places | None = None,
) -> Comparison | None:
    """The comparison that comes next and was not skipped. With `places`, it is locked, and how far the labeler has come
    is put there."""
    lock = places is not None
    if standing.is_kept_for:
        found = claim_queries.next_kept(session, project.id, labeler.id, except_id=except_id, lock=lock)
        if found is not None:
            return found
    for queue in standing.queues(project.id):
        place = standing.places.get(queue.group_id)
        found, reached = claim_queries.next_in_queue(
            session, queue, labeler.id, place, standing.now_xid, except_id=except_id, lock=lock
        )
        if places is not None:
            places[queue.group_id] = reached
        if found is not None:
            return found
    return None


def _laid_out(session: Session, comparison: Comparison, labeler: User) -> Claim:
    """Draws the order in which the responses are shown; a repeat shows them the other way round than before."""
    _make_room(session, comparison)
    if comparison.ranking_id is not None:
        shown = queries.ranked_completions(session, comparison.ranking_id)
        secrets.SystemRandom().shuffle(shown)
        return Claim(comparison.id, swapped=False, shown=shown)
    before = None
    if comparison.purpose == "repeat" and comparison.repeat_of_id is not None:
        before = mixing_queries.seen_swapped(session, comparison.repeat_of_id, labeler.id)
    return Claim(comparison.id, swapped=bool(secrets.randbits(1)) if before is None else not before)


def _make_room(session: Session, comparison: Comparison) -> None:
    """A calibration item, which is locked, takes one labeler more than it has."""
    if comparison.gold is not None:
        mixing_queries.make_room(session, comparison.id)


def own_lease(session: Session, project: Project, lease_id: UUID, labeler: User) -> tuple[Lease, Comparison]:
    """A lease that this labeler has or had, and its comparison, which is locked.

    Raises:
        NotFound: no such lease in this project.
        Forbidden: another labeler's lease.
    """
    found = queries.lock_leased(session, project.id, lease_id)
    if found is None:
        raise NotFound("There is no such task in this project.", "Open the labeling page to get the next one.")
    lease, comparison = found
    if lease.labeler_id != labeler.id:
        raise Forbidden("This task was given to somebody else.", "Open the labeling page to get one of your own.")
    return lease, comparison


def can_have(session: Session, project: Project, labeler: User, comparison: Comparison) -> bool:
    """Whether the labeler, who holds no lease on it, could be given this comparison now."""
    groups = claim_queries.standing(session, project.id, labeler.id).groups
    return claim_queries.claim_one(session, project.id, labeler.id, groups, comparison.id) is not None


def renew(session: Session, project: Project, labeler: User) -> list[UUID]:
    """Makes the leases that the labeler holds in this project last again from now on; returns them, oldest first. Of
    whoever is paused or removed none: an open page would keep them from others for ever."""
    gate_queries.lock_labeler(session, labeler.id)
    if gate.closed(session, project, labeler, begun=True):
        return []
    return queries.renew_live_leases(session, project.id, labeler.id, _lasting(project))


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
    gate_queries.lock_labeler(session, labeler.id)
    lease, comparison = own_lease(session, project, lease_id, labeler)
    session.refresh(lease, with_for_update=True)
    if lease.state == "live":
        lease.state, lease.reason, lease.expires_at = state, reason, func.now()
        session.flush()
    return Position(comparison.priority, comparison.id)


def progress(session: Session, project: Project, labeler: User) -> Progress:
    """How far the labeler is.

    Any task that is done makes `left` one less. If those mixed in did not, then the card on which its words change, and
    on which they do not, would tell what the card is: by skipping and undoing one can look at one card after another.
    """
    mixed = mixing.is_on(LabelingSettings.model_validate(project.labeling))
    since = queries.today(datetime.now(UTC))
    # Nothing beside the queues is counted without a limit, so what is kept is counted to more than may be shown.
    standing, counts = queries.numbers(session, project.id, labeler.id, since, 2 * COUNT_LIMIT, mixed=mixed)
    most = COUNT_LIMIT + counts.beside
    left = min(counts.of_queues + counts.kept, most)
    for queue in standing.queues(project.id):
        place = standing.places.get(queue.group_id)
        left += claim_queries.count_left(session, queue, labeler.id, place, most - left)
    if counts.held or left:
        left = max(1, left - counts.beside)
    return Progress(counts.done, left, mixed)


def is_same_comparison(session: Session, task: Task, lease_id: UUID) -> bool:
    """Whether the task is about what that lease was about."""
    lease = session.get(Lease, lease_id)
    return lease is not None and lease.comparison_id == task.position.comparison_id


def idle(session: Session, project: Project, labeler: User, skipped: Position | None = None) -> Idle:
    """Why `next_task` gave nothing."""
    if closed := gate.closed(session, project, labeler):
        return Idle(closed.reason, message=closed.message)
    standing = claim_queries.standing(session, project.id, labeler.id)
    if _is_there(session, project, labeler, standing, skipped.comparison_id if skipped else None):
        return Idle("busy")
    if skipped and _is_there(session, project, labeler, standing):
        return Idle("skipped")
    if sampling := queries.sampling(session, project.id):
        return Idle("sampling", *sampling)
    waiting = queries.waiting(session, project.id, labeler.id, standing.groups)
    if waiting.kept:
        return Idle("kept")
    if waiting.taken:
        return Idle("taken")
    return Idle("finished" if waiting.any else "nothing")


def project_with_work(session: Session, labeler: User) -> str | None:
    """Slug of a project that has a task for this labeler: a card on the desk first, then the one judged in last."""
    for project, holds_card in claim_queries.projects_with_work(session, labeler.id):
        if gate.closed(session, project, labeler, begun=True):  # a quiz they are led to from there
            continue
        standing = claim_queries.standing(session, project.id, labeler.id)
        if holds_card or _is_there(session, project, labeler, standing):
            return project.slug
    return None
