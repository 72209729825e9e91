"""Calibration: items with known answers, which labelers answer unknowingly, and what follows from how they do."""

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.accounts.service import audit
from app.errors import Conflict, InvalidInput, NotFound
from app.judging import LabelingSettings
from app.labeling import mixing_queries, queries
from app.models import Comparison, Project, Rubric, User

SETTLED = ("settled", "adjudicated")


def look_at(session: Session, project: Project, labeler_id: int) -> bool:
    """Pauses a labeler whose newest answers to calibration items are too often wrong; whether it did.

    Nobody is paused before they have given `least` answers since they began, or since an admin let them go on; nor
    who only came with imported data.
    """
    if session.get_one(User, labeler_id).kind == "imported":
        return False
    wanted = LabelingSettings.model_validate(project.labeling).calibration
    record = mixing_queries.calibration_record(session, project.id, labeler_id, wanted.window)
    if record.answers < wanted.least or record.right >= wanted.threshold * record.answers:
        return False
    standing = mixing_queries.lock_standing(session, project.id, labeler_id)
    if standing.state != "active":
        return False
    standing.state = "paused"
    standing.reason = (
        f"Some tasks have known answers. Of your last {record.answers}, {record.right} agree with them; this project "
        f"asks for {wanted.threshold:.0%}. Please read the guideline again and talk to an admin, who can let you go on."
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


def make_calibration(session: Session, project: Project, comparison_id: int, gold: int, actor: User) -> Comparison:
    """Makes a calibration item of a decided comparison: a copy with the known answer, which labelers meet unknowingly.

    The comparison itself stays as it is, and training goes on to read it. Whoever has judged it does not get the item.

    Args:
        gold: the right preference in canonical order; labelers are right who take its side.

    Raises:
        NotFound: the project has no such comparison.
        Conflict: it is not decided, is part of a ranking, or an item was made of it already.
        InvalidInput: gold is outside the rubric's scale.
    """
    comparison = session.get(Comparison, comparison_id)
    if comparison is None or comparison.project_id != project.id:
        raise NotFound(f"This project has no comparison {comparison_id}.", "Go back to the list.")
    comparison = queries.lock_comparison(session, comparison_id)
    if comparison.state not in SETTLED or comparison.purpose in ("calibration", "repeat"):
        raise Conflict(
            f"Comparison {comparison_id} is not decided yet.", "Only what is settled or adjudicated has a known answer."
        )
    before = mixing_queries.copy_of(session, comparison_id)
    if before is not None and before.state == "open":
        raise Conflict(f"Comparison {comparison_id} is a calibration item already.", "Nothing was changed.")
    rubric = session.get_one(Rubric, comparison.rubric_id)
    if abs(gold) > rubric.strengths or (gold == 0 and not rubric.allow_tie):
        raise InvalidInput(f"The answer {gold} is not on the rubric's scale.", f"Choose up to {rubric.strengths}.")
    item = Comparison(
        project_id=project.id,
        prompt_id=comparison.prompt_id,
        completion_a_id=comparison.completion_a_id,
        completion_b_id=comparison.completion_b_id,
        rubric_id=comparison.rubric_id,
        purpose="calibration",
        repeat_of_id=comparison.id,
        gold=gold,
        overlap=1,
    )
    session.add(item)
    session.flush()
    audit(session, actor.id, "calibration.added", project.id, comparison_id=comparison.id, item_id=item.id, gold=gold)
    return item


def retire(session: Session, project: Project, item_id: int, actor: User) -> None:
    """Takes a calibration item out of use; answers to it no longer count for or against anybody.

    Raises:
        NotFound: the project has no such item.
    """
    item = session.get(Comparison, item_id)
    if item is None or item.project_id != project.id or item.gold is None:
        raise NotFound(f"This project has no calibration item {item_id}.", "Go back to the list.")
    item = queries.lock_comparison(session, item_id)
    if item.state == "open":
        item.state = "withdrawn"
        audit(session, actor.id, "calibration.retired", project.id, item_id=item.id)
        session.flush()
