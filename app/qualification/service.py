"""The training quiz: attempts and their results. `app.access.gate` decides who has to take it."""

import random
from datetime import UTC, datetime
from math import ceil
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.documents import LabelingSettings, QuizItem
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Project, Qualification, Rubric, User
from app.qualification import queries


class Standing(NamedTuple):
    """A labeler's state in the quiz.

    rubric: the newest version. items: its quiz, or the one that was passed. needed: right answers needed to pass.
    attempt: the latest one; None before the first, or if the unfinished or failed attempt had other questions.
    attempts: how many there were.
    """

    rubric: Rubric
    items: list[QuizItem]
    needed: int
    attempt: Qualification | None
    attempts: int

    @property
    def next_item(self) -> int | None:
        """Index in the quiz of the question to answer next; None if all are answered or no attempt has begun."""
        if self.attempt is None:
            return None
        order = order_of(len(self.items), self.attempt.labeler_id, self.attempt.attempt)
        return next((item for item in order if str(item) not in self.attempt.answers), None)


def standing(session: Session, project: Project, labeler: User, *, for_update: bool = False) -> Standing:
    """Return the labeler's state in the quiz.

    Raises:
        NotFound: no rubric is published, or the newest one has no quiz.
    """
    rubric = gate_queries.newest_rubric(session, project.id)
    if rubric is None or not rubric.quiz:
        raise NotFound("This project has no training quiz.", "You can label right away.")
    attempt, asked = queries.newest_attempt(session, rubric, labeler.id, for_update=for_update) or (None, rubric.quiz)
    attempts = attempt.attempt if attempt else 0
    if attempt and not attempt.passed and asked != rubric.quiz:
        attempt, asked = None, rubric.quiz
    items = [QuizItem.model_validate(item) for item in asked]
    return Standing(rubric, items, needed_of(project, len(items)), attempt, attempts)


def needed_of(project: Project, questions: int) -> int:
    """Return how many right answers pass. 0.7 of 10 is 7: a floating-point error must not ask for an eighth."""
    return ceil(LabelingSettings.model_validate(project.labeling).quiz_pass * questions - 1e-9)


def order_of(questions: int, labeler_id: int, attempt: int) -> list[int]:
    """Return the order of the questions: the author's at first, shuffled when the quiz is retaken."""
    authors = list(range(questions))
    if attempt == 1:
        return authors
    shuffled = authors.copy()
    random.Random(f"{labeler_id} {attempt}").shuffle(shuffled)
    return shuffled if shuffled != authors else [*authors[1:], *authors[:1]]


def begin(session: Session, project: Project, labeler: User) -> Qualification:
    """Begin the first attempt, or another one after a failed one. An unfinished attempt continues; a
    passed one stays."""
    now = standing(session, project, labeler)
    if now.attempt is None or now.attempt.passed is False:
        queries.add_attempt(session, now.rubric.id, labeler.id, now.attempts + 1)
        now = standing(session, project, labeler)
    assert now.attempt is not None
    return now.attempt


def answer(session: Session, project: Project, labeler: User, attempt: int, item: int, said: int | None) -> None:
    """Take an answer to a question. Only the first answer counts, and the last question's answer ends the attempt.

    Args:
        attempt: id of the attempt that the question was shown in.
        item: index of the question in the quiz.
        said: -1 first, 0 tie, 1 second.

    Raises:
        Conflict: the quiz has changed since, or the attempt is over.
        NotFound: no such question.
        InvalidInput: no answer, or one that is not on the scale.
    """
    now = standing(session, project, labeler, for_update=True)
    own = now.attempt
    if own is None or own.id != attempt:
        raise Conflict(
            "The quiz has changed since you opened this question.", "Go on with the question that is shown now."
        )
    if not 0 <= item < len(now.items):
        raise NotFound("There is no such question in this quiz.", "Open the quiz again.")
    if str(item) in own.answers:
        return
    if said is None:
        raise InvalidInput("No answer was chosen.", "Choose which response is better.")
    if said not in ((-1, 0, 1) if now.rubric.allow_tie else (-1, 1)):
        raise InvalidInput("This answer is not on the rubric's scale.", "Choose one of the answers shown.")
    own.answers = {**own.answers, str(item): said}
    own.correct += said == now.items[item].answer
    if len(own.answers) == len(now.items):
        own.passed = own.correct >= now.needed
        own.finished_at = datetime.now(UTC)
    session.flush()
