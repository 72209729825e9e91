"""What is mixed into a labeler's tasks, not to be told from the others: calibration items, and repeats of their own."""

from itertools import takewhile
from secrets import SystemRandom

from sqlalchemy.orm import Session

from app.judging import LabelingSettings
from app.labeling import mixing_queries
from app.labeling.opening import open_copy
from app.models import Comparison, Project, User

_chance = SystemRandom()


def claim(session: Session, project: Project, labeler: User, settings: LabelingSettings, following: int) -> int | None:
    """A calibration item or a repeat, locked, where chance wants one and there is one.

    Chance is asked once for each task: those that were given before and went back unanswered, with a page that was
    closed or when their time was over, come again as they were and in their order, these too. Else whoever opened the
    page again and again would see which task makes way, and which one came in its place.

    Args:
        following: the comparison that comes next if nothing is mixed in.
    """
    if not (settings.calibration.rate or settings.repeats.rate):
        return None
    before = mixing_queries.given_back(session, project.id, labeler.id)
    is_again = any(each.comparison_id == following for each in before)
    earlier = list(takewhile(lambda each: each.comparison_id != following, before))
    mixed_in = [each.comparison_id for each in earlier if each.is_mixed_in]
    if mixed_in and (again := mixing_queries.claim_again(session, mixed_in, labeler.id)):
        return again
    if is_again:
        return None
    drawn = _chance.random()  # one draw for both: each so gets the share of tasks that the settings say
    if drawn < settings.calibration.rate:
        return _calibration_item(session, project, labeler)
    if drawn < settings.calibration.rate + settings.repeats.rate:
        return _open_repeat(session, project, labeler, settings.repeats.gap)
    return None


def _calibration_item(session: Session, project: Project, labeler: User) -> int | None:
    """One that the labeler has not met, under the newest rubric: items that were answered under an older one go on as
    copies, or they alone would show a guideline that no longer holds."""
    found = mixing_queries.claim_calibration(session, project.id, labeler.id)
    if found is None:
        return None
    item, newest = session.get_one(Comparison, found), mixing_queries.newest_rubric(session, project.id)
    if newest is None or item.rubric_id == newest.id or not mixing_queries.is_begun(session, item.id):
        return item.id
    assert item.gold is not None
    if mixing_queries.is_continued(session, item.id) or (item.gold == 0 and not newest.allow_tie):
        return None  # somebody else was faster; or no labeler could be right any more
    copy = open_copy(
        session,
        item,
        "calibration",
        rubric_id=newest.id,
        repeat_of_id=item.repeat_of_id or item.id,
        gold=max(-newest.strengths, min(newest.strengths, item.gold)),
    )
    return copy.id


def _open_repeat(session: Session, project: Project, labeler: User, gap: int) -> int | None:
    """Opens one of the labeler's own comparisons again, for them alone."""
    found = mixing_queries.to_repeat(session, project.id, labeler.id, gap)
    if found is None:
        return None
    original = session.get_one(Comparison, found)
    return open_copy(session, original, "repeat", labeler_id=labeler.id, priority=original.priority).id
