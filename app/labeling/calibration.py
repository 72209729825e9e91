"""Calibration: items with known answers that labelers cannot recognize, and pausing labelers who get too many wrong."""

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.audit import audit
from app.documents import Calibration, LabelingSettings
from app.errors import Conflict, InvalidInput, NotFound
from app.labeling import mixing_queries, queries
from app.labeling.mixing_queries import Record
from app.labeling.opening import open_copy
from app.models import Comparison, Project, Rubric, User

SETTLED = ("settled", "adjudicated")


def look_at(session: Session, project: Project, labeler_id: int) -> bool:
    """Pause a labeler whose newest answers to calibration items are too often wrong; return whether it did.

    Nobody is paused before giving `least` answers, counted from their start or from when an admin last unpaused them.
    Labelers who exist only through imported data are never paused.
    """
    labeler = session.get_one(User, labeler_id)
    if labeler.kind == "imported" or (labeler.kind == "ai_judge" and labeler.email is None):
        return False
    record, wanted = _record(session, project, labeler_id)
    if record.answers < wanted.least or _is_passed(record, wanted):
        return False
    standing = mixing_queries.lock_standing(session, project.id, labeler_id)
    if standing.state != "active":
        return False
    standing.state = "paused"
    standing.reason = (
        f"Some tasks have known answers. You were right on {record.right} of your last {record.answers}; this project "
        f"requires {wanted.threshold:.0%}. Please read the guideline again and ask an admin to resume your work."
    )
    standing.changed_by, standing.changed_at = None, func.now()
    audit(
        session,
        None,
        "labeler.paused",
        project.id,
        labeler_id=labeler_id,
        because="calibration",
        answers=record.answers,
        right=record.right,
        threshold=wanted.threshold,
    )
    session.flush()
    return True


def _record(session: Session, project: Project, labeler_id: int) -> tuple[Record, Calibration]:
    wanted = LabelingSettings.model_validate(project.labeling).calibration
    # A window smaller than the number of answers required would never pause anybody.
    window = max(wanted.window, wanted.least)
    return mixing_queries.calibration_record(session, project.id, labeler_id, window), wanted


def _is_passed(record: Record, wanted: Calibration) -> bool:
    return record.right >= wanted.threshold * record.answers


def paused_no_longer_rightly(session: Session, project: Project) -> list[User]:
    """Return labelers paused by calibration who would not be paused by today's known answers.

    This happens when an item was corrected or retired after they answered it.
    """
    paused = mixing_queries.paused_by_calibration(session, project.id)
    return [labeler for labeler in paused if _is_passed(*_record(session, project, labeler.id))]


def make_calibration(session: Session, project: Project, comparison_id: int, gold: int, actor: User) -> Comparison:
    """Make a calibration item from a decided comparison: a copy with a known answer, which looks like any other task.

    The original comparison stays as it is and remains training data. Labelers who judged it do not get the item.

    Args:
        gold: the right preference in canonical order; an answer on the same side counts as right.

    Raises:
        NotFound: the project has no such comparison.
        Conflict: it is not decided, is itself an item or a repeat, or an item was already made from it.
        InvalidInput: gold is outside the rubric's scale.
    """
    comparison = session.get(Comparison, comparison_id)
    if comparison is None or comparison.project_id != project.id:
        raise NotFound(f"This project has no comparison {comparison_id}.", "Go back to the list.")
    comparison = queries.lock_comparison(session, comparison_id)
    if comparison.gold is not None or comparison.purpose == "repeat":
        raise Conflict(
            f"Comparison {comparison_id} is itself a calibration item or a repeat.", "Choose the original comparison."
        )
    if comparison.state not in SETTLED:
        raise Conflict(
            f"Comparison {comparison_id} is not decided yet.",
            "Only a settled or adjudicated comparison can become a calibration item.",
        )
    if mixing_queries.in_use(session, comparison) is not None:
        raise Conflict(f"Comparison {comparison_id} is a calibration item already.", "Nothing was changed.")
    _check_gold(session, comparison, gold)
    item = open_copy(session, comparison, "calibration", gold=gold)
    audit(session, actor.id, "calibration.added", project.id, comparison_id=comparison.id, item_id=item.id, gold=gold)
    return item


def retire(session: Session, project: Project, item_id: int, actor: User) -> None:
    """Take a calibration item out of use. Answers to it no longer count.

    Raises:
        NotFound: the project has no such item.
    """
    kin = _lock_kin(session, project, item_id)
    if any(item.state == "open" for item in kin):
        _change_state(session, kin, "withdrawn")
        audit(session, actor.id, "calibration.retired", project.id, item_id=item_id)


def bring_back(session: Session, project: Project, item_id: int, actor: User) -> None:
    """Put a retired item into use again; answers given to it count again.

    Raises:
        NotFound: the project has no such item.
        Conflict: another item with the same responses is in use.
    """
    kin = _lock_kin(session, project, item_id)
    if all(item.state == "open" for item in kin):
        return
    other = mixing_queries.in_use(session, kin[0])
    if other is not None and other not in {item.id for item in kin}:
        raise Conflict(
            f"Item {other} asks about the same responses and has another known answer.", f"Retire {other} first."
        )
    _change_state(session, kin, "open")
    audit(session, actor.id, "calibration.brought_back", project.id, item_id=item_id)


def correct(session: Session, project: Project, item_id: int, gold: int, actor: User) -> None:
    """Change the known answer of an item. Earlier answers are scored by the new one from now on.

    Raises:
        NotFound: the project has no such item.
        Conflict: another item with the same responses has that answer.
        InvalidInput: gold is outside the rubric's scale.
    """
    kin = _lock_kin(session, project, item_id)
    item = next(each for each in kin if each.id == item_id)
    _check_gold(session, item, gold)
    if gold == item.gold:
        return
    other = mixing_queries.with_answer(session, item, gold)
    if other is not None and other not in {each.id for each in kin}:
        raise Conflict(f"Item {other} asks about the same responses and has this answer.", "Use that item instead.")
    before = item.gold
    for each in kin:
        strengths = session.get_one(Rubric, each.rubric_id).strengths
        each.gold = max(-strengths, min(strengths, gold))
    audit(session, actor.id, "calibration.corrected", project.id, item_id=item_id, before=before, gold=gold)
    session.flush()


def _lock_kin(session: Session, project: Project, item_id: int) -> list[Comparison]:
    """Return the item and its copies under other rubric versions, locked."""
    item = session.get(Comparison, item_id) if item_id < 2**63 else None
    if item is None or item.project_id != project.id or item.gold is None:
        raise NotFound(f"This project has no calibration item {item_id}.", "Go back to the list.")
    return mixing_queries.lock_kin(session, item)


def _change_state(session: Session, kin: list[Comparison], state: str) -> None:
    for item in kin:
        item.state = state
    session.flush()


def _check_gold(session: Session, comparison: Comparison, gold: int) -> None:
    rubric = session.get_one(Rubric, comparison.rubric_id)
    if gold == 0 and not rubric.allow_tie:
        raise InvalidInput("This rubric has no tie, so nobody could give that answer.", "Choose a side.")
    if abs(gold) > rubric.strengths:
        raise InvalidInput(f"The answer {gold} is not on the rubric's scale.", f"Choose up to {rubric.strengths}.")
