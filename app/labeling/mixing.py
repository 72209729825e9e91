"""What is mixed into a labeler's tasks, not to be told from the others: calibration items, and repeats of their own."""

from secrets import SystemRandom

from sqlalchemy.orm import Session

from app.judging import LabelingSettings
from app.labeling import mixing_queries
from app.models import Comparison, Project, User

_chance = SystemRandom()


def claim(session: Session, project: Project, labeler: User, settings: LabelingSettings) -> int | None:
    """A calibration item or a repeat, locked, where chance wants one and there is one."""
    if _chance.random() < settings.calibration.rate:
        found = mixing_queries.claim_calibration(session, project.id, labeler.id)
        if found is not None:
            return found
    if _chance.random() < settings.repeats.rate:
        return _open_repeat(session, project, labeler, settings.repeats.gap)
    return None


def _open_repeat(session: Session, project: Project, labeler: User, gap: int) -> int | None:
    """Opens one of the labeler's own comparisons again, for them alone."""
    found = mixing_queries.to_repeat(session, project.id, labeler.id, gap)
    if found is None:
        return None
    original = session.get_one(Comparison, found)
    repeat = Comparison(
        project_id=project.id,
        prompt_id=original.prompt_id,
        completion_a_id=original.completion_a_id,
        completion_b_id=original.completion_b_id,
        rubric_id=original.rubric_id,
        purpose="repeat",
        repeat_of_id=original.id,
        labeler_id=labeler.id,
        overlap=1,
        priority=original.priority,
    )
    session.add(repeat)
    session.flush()
    return repeat.id
