"""What is mixed into a labeler's tasks, not to be told from the others: calibration items, and repeats of their own."""

from secrets import SystemRandom

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.judging import LabelingSettings
from app.labeling import claim_queries, mixing_queries
from app.labeling.opening import open_copy
from app.models import Comparison, Project, User

_chance = SystemRandom()


def is_on(settings: LabelingSettings) -> bool:
    return settings.calibration.rate > 0 or settings.repeats.rate > 0


def claim_again(
    session: Session, project: Project, labeler: User, groups: list[int], *, lock: bool = True
) -> Comparison | None:
    """The first task that the labeler was given before and that went back unanswered, item or not: with a page that
    was closed, when its time was over, or when an answer before it was taken back. With `lock`, locked.

    Such tasks come again before all others, in the order in which they were given. Else whoever opens the page again
    and again, or takes back two answers, would see which task makes way for another, or changes places with it.
    """
    before = mixing_queries.given_back(session, project.id, labeler.id)
    return claim_queries.claim_first(session, labeler.id, groups, before, lock=lock) if before else None


def claim(session: Session, project: Project, labeler: User, settings: LabelingSettings) -> Comparison | None:
    """A calibration item or a repeat, locked, where chance wants one and there is one. Asked once for each task."""
    drawn = _chance.random()  # one draw for both: each so gets the share of tasks that the settings say
    if drawn < settings.calibration.rate:
        return _calibration_item(session, project, labeler)
    if drawn < settings.calibration.rate + settings.repeats.rate:
        return _open_repeat(session, project, labeler, settings.repeats.gap)
    return None


def _calibration_item(session: Session, project: Project, labeler: User) -> Comparison | None:
    """One that the labeler has not met, under the newest rubric: items that were answered under an older one go on as
    copies, or they alone would show a guideline that no longer holds."""
    item = mixing_queries.claim_calibration(session, project.id, labeler.id)
    if item is None:
        return None
    newest = gate_queries.newest_rubric(session, project.id)
    if newest is None or item.rubric_id == newest.id or not mixing_queries.is_begun(session, item.id):
        return item
    assert item.gold is not None
    if mixing_queries.is_continued(session, item.id) or (item.gold == 0 and not newest.allow_tie):
        return None  # somebody else was faster; or no labeler could be right any more
    root = item.repeat_of_id or item.id
    if not mixing_queries.can_refer(session, root):
        return None
    return open_copy(
        session,
        item,
        "calibration",
        rubric_id=newest.id,
        repeat_of_id=root,
        gold=max(-newest.strengths, min(newest.strengths, item.gold)),
    )


def _open_repeat(session: Session, project: Project, labeler: User, gap: int) -> Comparison | None:
    """Opens one of the labeler's own comparisons again, for them alone."""
    found = mixing_queries.to_repeat(session, project.id, labeler.id, gap)
    if found is None:
        return None
    original = session.get_one(Comparison, found)
    return open_copy(session, original, "repeat", labeler_id=labeler.id, priority=original.priority)
