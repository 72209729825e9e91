"""Rubrics with a quiz, and people who take it."""

from typing import Any

from sqlalchemy.orm import Session

from app.models import Project, Qualification, Rubric, User
from app.qualification import service
from tests import factories

# The right answers in order: first, tie, second.
QUIZ: list[dict[str, Any]] = [
    {"prompt": "Capital of France?", "first": "Paris", "second": "Rome", "answer": -1, "feedback": "Paris it is."},
    {"prompt": "Say hello.", "first": "Hello!", "second": "Hello.", "answer": 0, "feedback": "No difference."},
    {"prompt": "2 + 2?", "first": "5", "second": "4", "answer": 1, "feedback": "Only four is right."},
]
RIGHT = {0: -1, 1: 0, 2: 1}


def with_quiz(session: Session, project: Project, version: int = 1, **values: Any) -> Rubric:
    return factories.rubric(session, project, version=version, **({"quiz": QUIZ} | values))


def take(session: Session, project: Project, labeler: User, answers: dict[int, int] = RIGHT) -> Qualification:
    """Start or continue an attempt, and give these answers."""
    attempt = service.begin(session, project, labeler)
    for item, said in answers.items():
        service.answer(session, project, labeler, attempt.id, item, said)
    return attempt
