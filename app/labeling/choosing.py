"""Choosing the comparison that a labeler gets next, locked: kept for them, queued, mixed in, or skipped earlier."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from app.documents import LabelingSettings
from app.labeling import claim_queries, mixing
from app.labeling.claim_queries import Place, Standing
from app.models import Comparison, Project, User

Places = dict[int | None, Place]  # by group; None is the open queue


class Choice(NamedTuple):
    """The comparison, and the labeler's new place in each queue that was searched."""

    comparison: Comparison | None
    places: Places


def choose(session: Session, project: Project, labeler: User, except_id: int | None = None) -> Choice:
    """Return the next comparison; None if none is left or other transactions hold the last ones locked.

    Comparisons kept for the labeler or their groups come first, then the open queue, then the ones they skipped. A
    calibration item or a repeat is mixed in at random, but only while new tasks remain. After them, it would be
    recognizable.

    Args:
        except_id: a comparison that must not come next.
    """
    settings, places = LabelingSettings.model_validate(project.labeling), Places()
    standing = claim_queries.standing(session, project.id, labeler.id)
    found = mixing.claim_again(session, project, labeler, standing.groups) if mixing.is_on(settings) else None
    if found is None:
        found = _find_new(session, project, labeler, standing, except_id, places)
        if found is not None:
            found = mixing.claim(session, project, labeler, settings) or found
        else:
            groups = standing.groups
            found = claim_queries.next_skipped(session, project.id, labeler.id, groups, except_id=except_id)
    return Choice(found, places)


def choose_this(session: Session, project: Project, labeler: User, comparison_id: int) -> Comparison | None:
    """Return this comparison, locked, if the labeler can be given it now, even if they skipped it.

    The labeler must hold no lease on it.
    """
    groups = claim_queries.standing(session, project.id, labeler.id).groups
    return claim_queries.claim_one(session, project.id, labeler.id, groups, comparison_id)


def is_any(session: Session, project: Project, labeler: User, standing: Standing, except_id: int | None = None) -> bool:
    """Tell whether any task is available: new, given back, or skipped."""
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
    """Return the next comparison that the labeler has not skipped.

    With `places`, lock it and store the labeler's new place in each searched queue there.
    """
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
