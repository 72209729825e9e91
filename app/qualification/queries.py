"""SQL of the training quiz.

A quiz belongs to a rubric version. Later versions may accept it as their own (`quiz_of_version`), so nobody has to
retake it after an edit elsewhere in the rubric or a rewording of a question.
"""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, column, func, select, true
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session, aliased

from app.access.gate_queries import quiz_version
from app.access.queries import is_labeler_of
from app.models import Qualification, Rubric, User


def counts_for(rubric: Rubric) -> ColumnElement[bool]:
    """Condition on published rubric versions: their quiz counts for this version."""
    return (Rubric.project_id == rubric.project_id) & (quiz_version(Rubric) == rubric.quiz_version)


def newest_attempt(
    session: Session, rubric: Rubric, labeler_id: int, *, for_update: bool = False
) -> tuple[Qualification, list[Any]] | None:
    """Return the labeler's latest attempt that counts for this rubric, and the questions asked in it."""
    attempts = (
        select(Qualification, Rubric.quiz)
        .join(Rubric, Rubric.id == Qualification.rubric_id)
        .where(Qualification.labeler_id == labeler_id, counts_for(rubric))
        .order_by(Qualification.attempt.desc())
        .limit(1)
    )
    if for_update:
        attempts = attempts.with_for_update(of=Qualification)
    found = session.execute(attempts, execution_options={"populate_existing": True}).one_or_none()
    return None if found is None else (found[0], found[1])


def add_attempt(session: Session, rubric_id: int, labeler_id: int, attempt: int) -> None:
    """Begin this attempt. Does nothing if it has begun already (a second click, another tab)."""
    fresh = insert(Qualification).values(rubric_id=rubric_id, labeler_id=labeler_id, attempt=attempt)
    session.execute(fresh.on_conflict_do_nothing())


# ---- for staff -------------------------------------------------------------------------------------------------------


def versions_with_quiz(session: Session, project_id: int) -> list[Rubric]:
    """Return published versions that have a quiz, newest first."""
    published = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    with_quiz = published.where(func.jsonb_array_length(Rubric.quiz) > 0)
    return list(session.scalars(with_quiz.order_by(Rubric.version.desc())))


class Result(NamedTuple):
    """A labeler's latest attempt."""

    name: str
    labeler_id: int
    version: int
    attempt: int
    correct: int
    answered: int
    passed: bool | None  # None: not finished
    at: datetime  # when it was finished, else when it began


def results(session: Session, rubric: Rubric, limit: int, offset: int) -> list[Result]:
    """Return one row per labeler: those who have not passed first, then by name."""
    latest = (
        select(Qualification, Rubric.version)
        .join(Rubric, Rubric.id == Qualification.rubric_id)
        .where(counts_for(rubric))
        .ext(distinct_on(Qualification.labeler_id))
        .order_by(Qualification.labeler_id, Qualification.attempt.desc())
        .subquery()
    )
    attempt = aliased(Qualification, latest)
    answered = select(func.count()).select_from(func.jsonb_object_keys(attempt.answers)).scalar_subquery()
    rows = session.execute(
        select(User.name, User.id, latest.c.version, attempt.attempt, attempt.correct, answered, attempt.passed)
        .add_columns(func.coalesce(attempt.finished_at, attempt.created_at))
        .join_from(attempt, User, User.id == attempt.labeler_id)
        .order_by(func.coalesce(attempt.passed, False), User.name, User.id)
        .limit(limit)
        .offset(offset)
    )
    return [Result(*row) for row in rows]


class Totals(NamedTuple):
    """passed: labelers who passed. trying: labelers who tried and have not passed. labelers: active labelers of the
    project who are people."""

    passed: int
    trying: int
    labelers: int


def totals(session: Session, rubric: Rubric) -> Totals:
    taken = (
        select(Qualification.labeler_id, func.bool_or(Qualification.passed.is_(True)).label("passed"))
        .join(Rubric, Rubric.id == Qualification.rubric_id)
        .where(counts_for(rubric))
        .group_by(Qualification.labeler_id)
        .subquery()
    )
    passed, trying = session.execute(
        select(func.count().filter(taken.c.passed), func.count().filter(~taken.c.passed)).select_from(taken)
    ).one()
    people = select(func.count()).where(User.is_active, User.kind == "person", is_labeler_of(rubric.project_id))
    return Totals(passed, trying, session.scalar(people) or 0)


def first_answers(session: Session, rubric: Rubric) -> dict[tuple[int, int], int]:
    """Count labelers by (question's index in the quiz, answer), over first attempts at exactly these questions."""
    first = (
        select(Qualification.answers)
        .join(Rubric, Rubric.id == Qualification.rubric_id)
        .where(Rubric.project_id == rubric.project_id, Rubric.version.is_not(None), Rubric.quiz == rubric.quiz)
        .ext(distinct_on(Qualification.labeler_id))
        .order_by(Qualification.labeler_id, Qualification.id)
        .subquery()
    )
    answer = func.jsonb_each_text(first.c.answers).table_valued(column("key"), column("value"))
    rows = session.execute(
        select(answer.c.key, answer.c.value, func.count())
        .select_from(first)
        .join(answer, onclause=true())
        .group_by(answer.c.key, answer.c.value)
    )
    return {(int(key), int(value)): count for key, value, count in rows}
