"""Tasks mixed in among a labeler's others that look the same: calibration items, and repeats of their
own comparisons."""

from secrets import SystemRandom

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.documents import LabelingSettings
from app.labeling import claim_queries, mixing_queries
from app.labeling.opening import open_copy
from app.models import Comparison, Project, User

_chance = SystemRandom()


def is_on(settings: LabelingSettings) -> bool:
    return settings.calibration.rate > 0 or settings.repeats.rate > 0


def claim_again(
    session: Session, project: Project, labeler: User, groups: list[int], *, lock: bool = True
) -> Comparison | None:
    """Return the first task that the labeler was given and that went back unanswered; with `lock`, locked.

    It may be an item or not. It went back because the page was closed, its time ran out, or an earlier answer was taken
    back.

    These tasks come again before all others, in the order in which they were given. Otherwise labelers who reload the
    page repeatedly, or take back two answers, would see which task disappears or changes places with another.
    """
    before = mixing_queries.given_back(session, project.id, labeler.id)
    return claim_queries.claim_first(session, labeler.id, groups, before, lock=lock) if before else None


def claim(session: Session, project: Project, labeler: User, settings: LabelingSettings) -> Comparison | None:
    """Return a calibration item or a repeat, locked, if the draw asks for one and one is available. Called once per
    task."""
    drawn = _chance.random()  # one draw for both, so that each gets the share of tasks that the settings ask for
    if drawn < settings.calibration.rate:
        return _calibration_item(session, project, labeler)
    if drawn < settings.calibration.rate + settings.repeats.rate:
        return _open_repeat(session, project, labeler, settings.repeats.gap)
    return None


def _calibration_item(session: Session, project: Project, labeler: User) -> Comparison | None:
    """Return an item that the labeler has not met, under the newest rubric.

    An item that was answered under an older rubric continues as a copy. Otherwise only items would show an outdated
    guideline, and labelers would recognize them.
    """
    item = mixing_queries.claim_calibration(session, project.id, labeler.id)
    if item is None:
        return None
    newest = gate_queries.newest_rubric(session, project.id)
    if newest is None or item.rubric_id == newest.id or not mixing_queries.is_begun(session, item.id):
        return item
    assert item.gold is not None
    if mixing_queries.is_continued(session, item.id) or (item.gold == 0 and not newest.allow_tie):
        return None  # somebody else has just made the copy, or the new rubric has no right answer
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
    """Open one of the labeler's own comparisons again, for this labeler only."""
    found = mixing_queries.to_repeat(session, project.id, labeler.id, gap)
    if found is None:
        return None
    original = session.get_one(Comparison, found)
    return open_copy(session, original, "repeat", labeler_id=labeler.id, priority=original.priority)
