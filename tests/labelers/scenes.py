"""Projects whose labelers have habits, written in bulk."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
from sqlalchemy import insert
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Project, User
from tests import factories


class Habit(NamedTuple):
    """right: side with the truth. left: choose the left response whatever it says. seconds: usual time."""

    name: str
    right: float = 0.9
    left: float = 0.0
    seconds: float = 20.0
    kind: str = "person"


def people(session: Session, habits: list[Habit]) -> list[User]:
    return [factories.user(session, name=habit.name, kind=habit.kind) for habit in habits]


def judged(
    session: Session,
    project: Project,
    habits: list[Habit],
    *,
    comparisons: int,
    overlap: int,
    seed: int = 0,
    purpose: str = "train",
    days: int = 40,
) -> tuple[list[User], list[int]]:
    """Add settled comparisons, each judged by `overlap` labelers in turn; return (labelers, ids of the comparisons)."""
    rng = np.random.default_rng(seed)
    labelers = people(session, habits)
    prompts = [
        factories.prompt(session, project, domain=domain, difficulty=difficulty)
        for domain in ("law", "medicine")
        for difficulty in ("easy", "hard")
    ]
    pairs = [[factories.completion(session, prompt, f"Response {i} " * 30).id for i in range(2)] for prompt in prompts]
    rubric = factories.published_rubric(session, project)
    truth = rng.choice([-1, 1], comparisons)
    ids = list(
        session.scalars(
            insert(Comparison).returning(Comparison.id),
            [
                {
                    "project_id": project.id,
                    "prompt_id": prompts[i % 4].id,
                    "completion_a_id": pairs[i % 4][0],
                    "completion_b_id": pairs[i % 4][1],
                    "rubric_id": rubric.id,
                    "purpose": purpose,
                    "overlap": overlap,
                    "gold": int(truth[i]) if purpose == "calibration" else None,
                }
                for i in range(comparisons)
            ],
        )
    )
    begun = datetime.now(UTC) - timedelta(days=days)
    rows = []
    for i, id_ in enumerate(ids):
        for place in range(overlap):
            k = (i * overlap + place) % len(labelers)
            habit, swapped = habits[k], bool(rng.integers(2))
            side = truth[i] if rng.random() < habit.right else -truth[i]
            if rng.random() < habit.left:
                side = 1 if swapped else -1
            rows.append(
                {
                    "comparison_id": id_,
                    "labeler_id": labelers[k].id,
                    "rubric_id": rubric.id,
                    "preference": int(side * rng.integers(1, 4)),
                    "swapped": swapped,
                    "duration_ms": int(1000 * habit.seconds * rng.uniform(0.7, 1.3)),
                    "created_at": begun + timedelta(days=days * i / comparisons, seconds=place),
                }
            )
    for start in range(0, len(rows), 5000):
        session.execute(insert(Judgment), rows[start : start + 5000])
    session.query(Comparison).where(Comparison.id.in_(ids)).update({"state": "settled"}, synchronize_session=False)
    session.flush()
    return labelers, ids
