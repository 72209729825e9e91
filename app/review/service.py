"""What a reviewer decides about a comparison whose labelers split. Every decision is audited and made once."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.accounts.service import audit
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Adjudication, Comparison, Project, Rubric, User
from app.review import queries
from app.review.queries import Place

MAX_OVERLAP = 1000  # the table's limit
DONE = {
    "review.adjudicated": "gave the verdict on this comparison",
    "review.more_asked": "asked more labelers about this comparison",
    "review.withdrawn": "withdrew this comparison",
}


def adjudicate(
    session: Session, project: Project, reviewer: User, comparison_id: int, *, verdict: int, note: str = ""
) -> Place:
    """The reviewer's verdict stands in place of the judgments from now on.

    Returns:
        where the comparison stood in the queue.

    Raises:
        Conflict: it is not in review any more.
        InvalidInput: the verdict is outside the rubric's scale.
        NotFound: the project has no such comparison.
    """
    comparison, place = _take(session, project, comparison_id)
    strengths = session.get_one(Rubric, comparison.rubric_id).strengths
    if abs(verdict) > strengths:
        raise InvalidInput(f"The verdict {verdict} is outside the rubric's scale.", f"Choose 0 to {strengths}.")
    session.add(Adjudication(comparison_id=comparison.id, reviewer_id=reviewer.id, verdict=verdict, note=note.strip()))
    comparison.state = "adjudicated"
    comparison.consensus = float(verdict)
    comparison.settled_at = datetime.now(UTC)
    audit(
        session, reviewer.id, "review.adjudicated", project.id, comparison_id=comparison.id, verdict=verdict, note=note
    )
    session.flush()
    return place


def ask_more(session: Session, project: Project, reviewer: User, comparison_id: int, *, more: int) -> Place:
    """Puts the comparison back into the labeling queue for that many further labelers; it settles anew after them.

    Raises:
        Conflict, NotFound: as `adjudicate`.
        InvalidInput: it would want more labelers than a comparison may have.
    """
    comparison, place = _take(session, project, comparison_id)
    if comparison.overlap + more > MAX_OVERLAP:
        raise InvalidInput(f"A comparison takes {MAX_OVERLAP} judgments at most.", "Give a verdict instead.")
    comparison.overlap = comparison.judgment_count + more
    comparison.state = "open"
    audit(session, reviewer.id, "review.more_asked", project.id, comparison_id=comparison.id, more=more)
    session.flush()
    return place


def withdraw(session: Session, project: Project, reviewer: User, comparison_id: int, *, note: str = "") -> Place:
    """Takes the comparison out: nothing reads it any more. Its judgments stay stored.

    Raises:
        Conflict, NotFound: as `adjudicate`.
    """
    comparison, place = _take(session, project, comparison_id)
    comparison.state = "withdrawn"
    audit(session, reviewer.id, "review.withdrawn", project.id, comparison_id=comparison.id, note=note)
    session.flush()
    return place


def _take(session: Session, project: Project, comparison_id: int) -> tuple[Comparison, Place]:
    """The comparison, locked, which must still be in review, and its place."""
    comparison = queries.lock(session, project.id, comparison_id)
    if comparison is None:
        raise NotFound(f"This project has no comparison {comparison_id}.", "Go back to the review queue.")
    if comparison.state != "in_review":
        # Two reviewers at once: the lock let the first one through; the second hears who that was.
        action, name = queries.last_decision(session, project.id, comparison_id) or ("", "")
        message = f"{name} already {DONE[action]}." if action in DONE else "This comparison is not in review any more."
        raise Conflict(message, "Nothing was changed. Go on with the next one in the review queue.")
    return comparison, Place(comparison.agreement or 0.0, comparison.id)


def next_place(session: Session, project: Project, after: Place) -> Place | None:
    """The next comparison in review, from the queue's start again after its end; none when it is empty."""
    found = queries.queue(session, project.id, after, 1) or queries.queue(session, project.id, None, 1)
    return found[0].place if found else None
