"""What a labeler can expect: how many tasks are left, why there is none, and which project has work."""

from datetime import UTC, datetime
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.access import gate
from app.documents import LabelingSettings
from app.labeling import choosing, claim_queries, mixing, queries
from app.labeling.queries import Position
from app.models import Project, User

# Counting further takes time and tells the labeler nothing.
COUNT_LIMIT = 500

Reason = Literal["paused", "removed", "quiz", "busy", "skipped", "sampling", "nothing", "kept", "taken", "finished"]


class Progress(NamedTuple):
    """done: judgments today (UTC), in this project. left: comparisons to come, including the one on the desk, counted
    up to `COUNT_LIMIT`. mixed: items or repeats are mixed in, and each one answered also lowers `left` by one."""

    done: int
    left: int
    mixed: bool = False

    @property
    def to_go(self) -> str:
        """Return `left` in words. If tasks are mixed in, the words are vague and change only three times."""
        if self.left >= COUNT_LIMIT:
            return f"{COUNT_LIMIT}+"
        if not self.mixed or not self.left:
            return str(self.left)
        return next((f"more than {n}" for n in (100, 50, 20) if self.left > n), "about 20 or fewer")


class Idle(NamedTuple):
    """Why there is no task.

    paused, removed: the labeler may not label here now; `message` says why. quiz: they have not passed it. busy: other
    transactions hold the last ones locked, so try again. skipped: only the one just skipped is left. sampling: a model
    is writing new responses. nothing: the project has no comparison. kept: the comparisons they have not judged are
    kept for others. taken: they are on other people's desks. finished: the labeler has judged everything. It does
    not say whether these comparisons wait for other labelers, because that would reveal disagreement: more labelers are
    asked where people disagree.
    """

    reason: Reason
    sampled: int = 0
    to_sample: int = 0
    message: str = ""


def progress(session: Session, project: Project, labeler: User) -> Progress:
    """Return how much the labeler has done and how much is left.

    Every finished task lowers `left` by one. If tasks that were mixed in did not, labelers could recognize them by
    whether the number changes, and could test card after card by skipping and undoing.
    """
    mixed = mixing.is_on(LabelingSettings.model_validate(project.labeling))
    since = queries.today(datetime.now(UTC))
    # Every count has a limit. Tasks kept for the labeler are counted beyond the number shown, because `beside` is
    # subtracted.
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
    """Return why `next_task` gave nothing."""
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
    """Return the slug of a project with a task for this labeler: one with a card on the desk first, then
    the last used."""
    for project, holds_card in claim_queries.projects_with_work(session, labeler.id):
        if gate.closed(session, project, labeler, begun=True):  # if a quiz is due, the project's page leads to it
            continue
        standing = claim_queries.standing(session, project.id, labeler.id)
        if holds_card or choosing.is_any(session, project, labeler, standing):
            return project.slug
    return None
