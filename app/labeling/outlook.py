"""What lies before a labeler: how many tasks are left, or why there is none, and where there are some."""

from datetime import UTC, datetime
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.access import gate
from app.judging import LabelingSettings
from app.labeling import choosing, claim_queries, mixing, queries
from app.labeling.queries import Position
from app.models import Project, User

# Counting further would cost time and tell a labeler nothing.
COUNT_LIMIT = 500

Reason = Literal["paused", "removed", "quiz", "busy", "skipped", "sampling", "nothing", "kept", "taken", "finished"]


class Progress(NamedTuple):
    """done: judgments today (UTC), in this project. left: comparisons to come, with the one on the desk; counted up to
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


def idle(session: Session, project: Project, labeler: User, skipped: Position | None = None) -> Idle:
    """Why `next_task` gave nothing."""
    if closed := gate.closed(session, project, labeler):
        return Idle(closed.reason, message=closed.message)
    standing = claim_queries.standing(session, project.id, labeler.id)
    if choosing.is_any(session, project, labeler, standing, skipped.comparison_id if skipped else None):
        return Idle("busy")
    if skipped and choosing.is_any(session, project, labeler, standing):
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
        if holds_card or choosing.is_any(session, project, labeler, standing):
            return project.slug
    return None
