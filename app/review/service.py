"""Reviewers' decisions about a comparison. Every decision is audited, and made once.

Reviewers read other people's judgments, so they give up judging the same comparison themselves: see `open_case`.
"""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.access.members import roles_in
from app.audit import audit
from app.domain import consensus, overlap, scale
from app.domain.consensus import Consensus
from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.labelers import fitting
from app.labelers.fitting import Said
from app.labeling import answers, calibration, recusal
from app.models import Adjudication, Comparison, Project, Rubric, User
from app.review import queries, queues
from app.review.forms import QueueName, Wanted
from app.review.queries import Case
from app.review.queues import COUNT_LIMIT, Place

__all__ = [
    "COUNT_LIMIT",
    "adjudicate",
    "as_seen",
    "ask_more",
    "blind_for",
    "dismiss_flags",
    "following",
    "give_up",
    "make_calibration",
    "open_case",
    "people_are_right",
    "request",
    "waiting",
    "withdraw",
]

MAX_OVERLAP = 1000  # limit of the table's check
# Comparisons that measure labelers: the answer is known, and no model learns from them.
MEASURING = ("calibration", "repeat")
# What a reviewer did, in words for another reviewer.
DONE = {
    "review.adjudicated": "gave the verdict on this comparison",
    "review.more_asked": "asked more labelers about this comparison",
    "review.withdrawn": "withdrew this comparison",
    "review.flags_dismissed": "dismissed the flags of this comparison",
    "review.people_right": "found the labelers of this comparison right",
    "review.requested": "sent this comparison to review",
    "calibration.added": "made this comparison a calibration item",
}


def open_case(session: Session, project: Project, viewer: User, comparison_id: int) -> Case:
    """Return everything about a comparison for a reviewer, who can no longer judge it from now on.

    Raises:
        NotFound: the project has no such comparison.
        Forbidden: the viewer may still judge it or change their judgment: see `give_up`.
    """
    found = queries.case(session, project.id, comparison_id)
    if found is None:
        raise _unknown(comparison_id)
    _refuse_blind(session, viewer, found.comparison)
    recusal.recuse(session, comparison_id, viewer.id)
    return found


def blind_for(session: Session, viewer: User, comparisons: Collection[Comparison]) -> set[int]:
    """Return ids of the comparisons (all of one project) that the viewer could still judge, or whose judgment they
    could change."""
    if not comparisons or "labeler" not in roles_in(session, next(iter(comparisons)).project_id, viewer):
        return set()
    opened = {comparison.id for comparison in comparisons if comparison.state == "open"}
    closed = {comparison.id for comparison in comparisons} - opened
    blind = opened | answers.changeable_by(session, viewer.id, closed)
    return blind - recusal.recused_from(session, blind, viewer.id)


def give_up(session: Session, project: Project, labeler: User, comparison_id: int) -> None:
    """Let the labeler give up judging the comparison in order to review it. A judgment they gave before stands."""
    if queries.case(session, project.id, comparison_id) is None:
        raise _unknown(comparison_id)
    recusal.recuse(session, comparison_id, labeler.id)
    audit(session, labeler.id, "labeling.recused", project.id, comparison_id=comparison_id)


def as_seen(session: Session, comparison: Comparison) -> str:
    """Return what a reviewer sees, as text that is sent with the decision: state, judgments, and decisions.

    Call it before reading the judgments, so that a judgment that arrives in between counts as not seen.
    """
    judgment, decision = queries.newest(session, comparison.id)
    return f"{comparison.state}-{comparison.judgment_count}-{judgment}-{decision}"


def adjudicate(
    session: Session,
    project: Project,
    reviewer: User,
    comparison_id: int,
    *,
    verdict: int,
    note: str = "",
    calibrate: bool = False,
    seen: str = "",
) -> Comparison:
    """Store the reviewer's verdict, which replaces the judgments from now on.

    Args:
        calibrate: also make a calibration item with this verdict as its known answer.

    Raises:
        Conflict: somebody judged or decided since the reviewer looked, it has a verdict or was withdrawn, it measures
            labelers, or no calibration item can be made of it.
        Forbidden: it is open and the reviewer may still judge it.
        InvalidInput: the verdict is outside the rubric's scale.
        NotFound: the project has no such comparison.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("open", "settled", "in_review"))
    _refuse_measuring(comparison)
    strengths = session.get_one(Rubric, comparison.rubric_id).strengths
    if verdict not in scale.values(strengths, allow_tie=True):
        raise InvalidInput(f"The verdict {verdict} is outside the rubric's scale.", f"Choose 0 to {strengths}.")
    session.add(Adjudication(comparison_id=comparison.id, reviewer_id=reviewer.id, verdict=verdict, note=note))
    comparison.state, comparison.flagged = "adjudicated", False
    _write_consensus(comparison, consensus.verdict(verdict).rounded())
    comparison.settled_at = datetime.now(UTC)
    _decided(session, reviewer, comparison, "review.adjudicated", verdict=verdict, note=note)
    if calibrate:
        calibration.make_calibration(session, project, comparison.id, verdict, reviewer)
    return comparison


def make_calibration(
    session: Session, project: Project, reviewer: User, comparison_id: int, *, note: str = "", seen: str = ""
) -> Comparison:
    """Make a calibration item of a comparison that has a verdict; the verdict is the known answer.

    Raises:
        Conflict: as `adjudicate`, or it is an item already.
        Forbidden, NotFound: as `adjudicate`.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("adjudicated",))
    verdict = queries.verdict(session, comparison_id)
    if verdict is None:
        raise Conflict(
            "Its verdict was imported without a record of who gave it.", "Send it to review and decide it here."
        )
    calibration.make_calibration(session, project, comparison_id, verdict.adjudication.verdict, reviewer)
    return comparison


def ask_more(
    session: Session,
    project: Project,
    reviewer: User,
    comparison_id: int,
    *,
    more: int,
    group_id: int | None = None,
    labeler_id: int | None = None,
    note: str = "",
    seen: str = "",
) -> Comparison:
    """Put the comparison back into the labeling queue, with higher priority, for this many more labelers.

    It settles again after them. They can be limited to a group or a person. A pair of a ranking is asked about alone.

    Raises:
        Conflict, Forbidden, NotFound: as `adjudicate`.
        InvalidInput: it would need more labelers than allowed, or than the group or person can provide.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("settled", "in_review"))
    _refuse_measuring(comparison)
    wanted = comparison.judgment_count + max(more, comparison.lease_count)
    if wanted > MAX_OVERLAP:
        raise InvalidInput(f"A comparison takes {MAX_OVERLAP} judgments at most.", "Give a verdict instead.")
    asked = _whom(session, comparison, more, group_id, labeler_id)
    comparison.overlap, comparison.overlap_max = wanted, None
    # `grown` excludes judgments without a preference: as many preferences are wanted as there are, plus the new ones.
    comparison.grown = queries.could_not_judge(session, comparison.id)
    comparison.group_id, comparison.labeler_id = group_id, labeler_id
    comparison.ranking_id, comparison.offered = None, True
    comparison.priority += 1
    comparison.state, comparison.review_reason, comparison.settled_at = "open", None, None
    comparison.conflict_dismissed = False
    return _decided(session, reviewer, comparison, "review.more_asked", more=more, asked=asked, note=note)


def _whom(
    session: Session, comparison: Comparison, more: int, group_id: int | None, labeler_id: int | None
) -> str | None:
    """Return the name of the group or person asked; None for anyone."""
    if labeler_id is not None:
        person = next((one for one in queries.people_to_ask(session, comparison) if one.id == labeler_id), None)
        if person is None:
            raise InvalidInput("This person cannot be asked: they judged or reviewed it, or may not label here.")
        if more > 1:
            raise InvalidInput(
                f"{person.name} alone cannot give {more} judgments.", "Ask for one judgment, or ask a group."
            )
        return person.name
    if group_id is not None:
        group = next((one for one in queries.groups_to_ask(session, comparison) if one.id == group_id), None)
        if group is None:
            raise InvalidInput("Nobody in this group can still be asked.", "Ask another group, or anyone.")
        if more > group.people:
            raise InvalidInput(
                f"Only {group.people} of {group.name} can still be asked, not {more}.", "Ask for fewer, or ask anyone."
            )
        return group.name
    return None


def withdraw(
    session: Session, project: Project, reviewer: User, comparison_id: int, *, note: str, seen: str = ""
) -> Comparison:
    """Withdraw the comparison: nothing reads it any more. Its judgments stay stored.

    Raises:
        Conflict, Forbidden, NotFound: as `adjudicate`.
        InvalidInput: no reason is given.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("open", "settled", "in_review"))
    if not note:
        raise InvalidInput("Withdrawing needs a reason.", "Write in the note why no model should learn from it.")
    comparison.state, comparison.flagged = "withdrawn", False
    return _decided(session, reviewer, comparison, "review.withdrawn", note=note)


def dismiss_flags(
    session: Session, project: Project, reviewer: User, comparison_id: int, *, note: str = "", seen: str = ""
) -> Comparison:
    """Dismiss the flags: they need no action. A flag that a labeler sets later brings the comparison back.

    Raises:
        Conflict: as `adjudicate`, or nothing is flagged any more.
        Forbidden, NotFound: as `adjudicate`.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("open", "settled", "in_review", "adjudicated"))
    if not comparison.flagged and comparison.review_reason != "flagged":
        raise Conflict("No flag of this comparison waits for a reviewer.", "Nothing was changed.")
    comparison.flagged = False
    # the flag was the only reason for review
    if comparison.state == "in_review" and comparison.review_reason == "flagged":
        comparison.state, comparison.review_reason, comparison.settled_at = "settled", None, datetime.now(UTC)
    return _decided(session, reviewer, comparison, "review.flags_dismissed", note=note)


def people_are_right(
    session: Session, project: Project, reviewer: User, comparison_id: int, *, note: str = "", seen: str = ""
) -> Comparison:
    """Decide that the labelers are right and the reward model is wrong.

    The comparison leaves the queue of conflicts permanently.

    Raises:
        Conflict, Forbidden, NotFound: as `adjudicate`.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("settled", "in_review"))
    comparison.conflict_dismissed = True
    return _decided(session, reviewer, comparison, "review.people_right", note=note)


def request(
    session: Session, project: Project, reviewer: User, comparison_id: int, *, note: str = "", seen: str = ""
) -> Comparison:
    """Put a decided or withdrawn comparison up for review.

    An existing verdict is deleted, and the labelers' consensus applies again.

    Raises:
        Conflict: as `adjudicate`, or it was asked again under a newer rubric.
        Forbidden, NotFound: as `adjudicate`.
    """
    comparison = _take(session, project, reviewer, comparison_id, seen, ("settled", "adjudicated", "withdrawn"))
    _refuse_measuring(comparison)
    if (newer := queries.replacement(session, comparison.id)) is not None:
        raise Conflict(f"It is asked again as comparison {newer} under a newer rubric.", f"Review {newer} instead.")
    if verdict := queries.verdict(session, comparison.id):
        session.delete(verdict.adjudication)
    comparison.state, comparison.review_reason, comparison.settled_at = "in_review", "requested", None
    labelers, preferences = queries.preferences(session, comparison.id)
    strengths = session.get_one(Rubric, comparison.rubric_id).strengths
    said = [Said(labelers, preferences, strengths)] if preferences else []
    _write_consensus(comparison, next(iter(fitting.decide(session, project, said)), None))
    comparison.agreement = overlap.agreement(preferences)
    return _decided(session, reviewer, comparison, "review.requested", note=note)


def _write_consensus(comparison: Comparison, found: Consensus | None) -> None:
    comparison.consensus = found.preference if found else None
    comparison.p_b, comparison.p_tie = (found.p_b, found.p_tie) if found else (None, None)


def _decided(session: Session, reviewer: User, comparison: Comparison, action: str, **details: object) -> Comparison:
    audit(session, reviewer.id, action, comparison.project_id, comparison_id=comparison.id, **details)
    session.flush()
    return comparison


def _take(
    session: Session, project: Project, reviewer: User, comparison_id: int, saw: str, states: Collection[str]
) -> Comparison:
    """Return the comparison, locked, if it is in one of these states and still as the reviewer saw it."""
    comparison = queries.lock(session, project.id, comparison_id)
    if comparison is None:
        raise _unknown(comparison_id)
    _refuse_blind(session, reviewer, comparison)
    sees = as_seen(session, comparison)
    if comparison.state not in states or (saw and saw != sees):
        # Two reviewers at once: the lock let the first one through; the second is told who that was.
        if decisions := queries.decisions(session, comparison_id) if _last(saw) != _last(sees) else []:
            last = decisions[-1]
            message = f"{last.reviewer} already {DONE[last.action]}."
        else:
            message = "This comparison was judged or changed after you opened it."
        raise Conflict(
            message, "Nothing was changed. The page shows its present state. “Later” goes to the next comparison."
        )
    return comparison


def _last(seen: str) -> str:
    """Return the id of the last decision at that time."""
    return seen.rpartition("-")[2]


def _refuse_measuring(comparison: Comparison) -> None:
    if comparison.purpose in MEASURING:
        raise Conflict(
            "Calibration items and repeats only measure labelers, so a verdict on them would change nothing.",
            "You can dismiss its flags or withdraw it.",
        )


def _refuse_blind(session: Session, viewer: User, comparison: Comparison) -> None:
    if blind_for(session, viewer, [comparison]):
        raise Forbidden(
            "You may still judge this comparison or change your judgment, so other people's judgments are hidden "
            "from you.",
            "Give up judging it to review it.",
        )


def _unknown(comparison_id: int) -> NotFound:
    return NotFound(f"This project has no comparison {comparison_id}.", "Go back to the review queue.")


def waiting(session: Session, project: Project) -> dict[QueueName, int]:
    """Count comparisons that wait for a reviewer, by reason, up to `COUNT_LIMIT`."""
    return queues.waiting(session, project.id)


def following(session: Session, project: Project, wanted: Wanted, after: Place) -> int | None:
    """Return the next comparison of the queue, starting over at its end; None if there is no other."""
    found = queues.next_id(session, project.id, wanted, after) or queues.next_id(session, project.id, wanted, None)
    return None if found == after.comparison_id else found
