"""The labeling queue: handing out comparisons, taking judgments, settling.

The only place that turns a preference for a side shown into one in canonical order.
"""

import secrets
from collections.abc import Collection
from datetime import timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from app.domain import assignment
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound
from app.labeling import queries
from app.labeling.forms import LabelForm
from app.labeling.queries import Position, Task
from app.models import Judgment, Lease, Project, Rubric, User

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
    session: Session, project: Project, labeler: User, *, again: UUID | None = None, skipped: Position | None = None
) -> Task | None:
    """The labeler's task: the one on the desk (a second tab or a reload sees the same), else the next in the queue.

    Args:
        again: a lease of theirs whose comparison comes first if it is still to be had, with the sides as they were.
        skipped: where they skipped; that comparison is not given again at once.

    Returns:
        None when there is nothing for this labeler now; `idle` says why.
    """
    lasting = timedelta(minutes=project.lease_minutes)
    queries.lock_labeler(session, labeler.id)
    queries.expire_leases(session)
    lease_id = queries.renew_live_lease(session, project.id, labeler.id, lasting)
    if lease_id is None:
        chosen = _claim_again(session, project, labeler, again) or _claim_next(session, project, labeler, skipped)
        if chosen is None:
            return None
        comparison_id, swapped = chosen
        lease_id = queries.add_lease(session, comparison_id, labeler.id, swapped, lasting)
    return queries.task(session, lease_id)


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


def submit(session: Session, project: Project, lease_id: UUID, labeler: User, form: LabelForm) -> Judgment:
    """Takes a judgment; the last one wanted settles the comparison. The same form again changes nothing.

    A lease that ran out does no harm as long as nobody else took its place. Nothing is written when this raises.

    Raises:
        NotFound: no such lease in this project.
        Forbidden: another labeler's lease.
        Conflict: judged already (in another tab), or under a rubric that has changed since.
        Gone: the time ran out and others took the place, or the comparison was closed.
        InvalidInput: the answer is not one that the rubric allows.
    """
    queries.lock_labeler(session, labeler.id)
    repeated = queries.judgment_by_key(session, form.idempotency_key)
    if repeated and _says(repeated) == (labeler.id, lease_id, form.preference, form.rationale):
        return repeated
    lease = _own_lease(session, project, lease_id, labeler)
    comparison = queries.lock_comparison(session, lease.comparison_id)
    leases = queries.lock_leases(session, comparison.id, labeler.id)
    if repeated or queries.live_judgment(session, comparison.id, labeler.id):
        raise Conflict("You have judged this comparison already, perhaps in another tab.", "Your first answer stands.")
    if comparison.state == "withdrawn":
        raise Gone("This comparison was withdrawn while you had it.", "No answer to it is needed any more.")
    if comparison.state != "open":
        raise _taken()
    if form.rubric_id != comparison.rubric_id:
        raise Conflict(
            "A new version of the rubric applies to this comparison since you opened it.",
            "Please read what changed and judge once more.",
        )
    holds_place = any(own.state == "live" for own, _age in leases)
    if not holds_place and comparison.judgment_count + comparison.lease_count >= comparison.overlap:
        raise _taken()
    rubric = session.get_one(Rubric, comparison.rubric_id)
    preference = _check(form, rubric)

    age_ms = 0
    for own, age in leases:
        if own.id == lease_id:
            own.state, age_ms = "submitted", age
        elif own.state == "live":
            own.state = "released"
    session.flush()  # The place must be free before the judgment takes it: see overlap_never_exceeded.
    judgment = Judgment(
        comparison_id=comparison.id,
        labeler_id=labeler.id,
        rubric_id=rubric.id,
        lease_id=lease_id,
        preference=assignment.canonical(preference, swapped=lease.swapped),
        rationale=form.rationale,
        swapped=lease.swapped,
        duration_ms=age_ms if form.duration_ms is None else min(form.duration_ms, age_ms),
        idempotency_key=form.idempotency_key,
    )
    session.add(judgment)
    session.flush()
    settle(session, [comparison.id])
    return judgment


def _says(judgment: Judgment) -> tuple[int, UUID | None, int, str]:
    """Who said what where, as it was shown. The same key with anything else is a page from the browser's history."""
    shown = assignment.canonical(judgment.preference, swapped=bool(judgment.swapped))
    return judgment.labeler_id, judgment.lease_id, shown, judgment.rationale


def _own_lease(session: Session, project: Project, lease_id: UUID, labeler: User) -> Lease:
    lease = queries.find_lease(session, project.id, lease_id)
    if lease is None:
        raise NotFound("There is no such task in this project.", "Open the labeling page to get the next one.")
    if lease.labeler_id != labeler.id:
        raise Forbidden("This task was given to somebody else.", "Open the labeling page to get one of your own.")
    return lease


def _taken() -> Gone:
    return Gone("Your time for this comparison ran out and others took it.", "Your answer was not needed any more.")


def _check(form: LabelForm, rubric: Rubric) -> int:
    """The preference, as shown, if the rubric allows the answer."""
    if form.preference is None:
        raise InvalidInput("No preference was chosen.", "Choose one of the steps between the two responses.")
    if form.preference not in assignment.scale(rubric.strengths, allow_tie=rubric.allow_tie):
        if form.preference == 0:
            raise InvalidInput("This rubric has no tie.", "Choose the response that is better, if only slightly.")
        raise InvalidInput("This preference is not on the rubric's scale.", "Choose one of the steps shown.")
    if rubric.rationale_rule == "required" and not form.rationale:
        raise InvalidInput("This rubric asks for a reason with every judgment.", "Say in a sentence why.")
    return form.preference


def release(session: Session, project: Project, lease_id: UUID, labeler: User) -> Position:
    """Gives a task back to the queue ("skip"); returns where in the queue it is. Twice changes nothing.

    Raises:
        NotFound, Forbidden: as in `submit`.
    """
    queries.lock_labeler(session, labeler.id)
    lease = _own_lease(session, project, lease_id, labeler)
    comparison = queries.lock_comparison(session, lease.comparison_id)
    session.refresh(lease, with_for_update=True)
    if lease.state == "live":
        lease.state = "released"
        session.flush()
    return Position(comparison.priority, comparison.id)


def expire_leases(session: Session) -> int:
    """Returns tasks held past their time to the queue, of whatever project; returns how many (some hundred at most)."""
    return queries.expire_leases(session)


def settle(session: Session, comparison_ids: Collection[int]) -> int:
    """Closes those of the comparisons that have all their judgments; returns how many. The one rule for it:

    agreement is the share of pairs of judgments on the same side, consensus their mean preference; agreement below the
    project's review threshold sends the comparison to review. Objects loaded before are not refreshed.
    """
    return queries.settle(session, comparison_ids)


def progress(session: Session, project: Project, labeler: User, task: Task | None) -> Progress:
    done = queries.judged_today(session, labeler.id)
    if task is None:
        return Progress(done, 0)
    left = 1 + queries.remaining(session, project.id, labeler.id, task.position, COUNT_LIMIT - 1)
    return Progress(done, left)


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
