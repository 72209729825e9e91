"""Comparisons as reviewers find them."""

from typing import Any

from sqlalchemy.orm import Session

from app.labeling import settling
from app.models import Comparison, Project
from tests import factories


def judged(session: Session, project: Project, *preferences: int, **values: Any) -> Comparison:
    """Add a comparison with these judgments, closed by the labeling rule."""
    row = factories.comparison(session, project, overlap=len(preferences), **values)
    for preference in preferences:
        factories.judgment(session, row, preference=preference, rationale=f"because {preference}")
    settling.settle(session, [row.id])
    session.refresh(row)
    return row


def conflicting(
    session: Session, project: Project, p_b: float, *, trained: bool = False, preference: int = -2, **values: Any
) -> Comparison:
    """Add a settled comparison on which two people agree; the reward model gives B the probability `p_b`."""
    given = {"reward_p_b": p_b, "reward_trained": trained} | values
    return judged(session, project, preference, preference, **given)
