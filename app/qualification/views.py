"""Data for the quiz pages."""

from typing import NamedTuple

from app.documents import QuizItem
from app.domain.proportions import wilson
from app.models import Rubric
from app.qualification.service import Standing

WORDS = {-1: "First is better", 0: "Tie", 1: "Second is better"}


class Choice(NamedTuple):
    """A possible answer, and the key that chooses it."""

    value: int
    words: str
    key: str
    side: str


CHOICES = (
    Choice(-1, WORDS[-1], "1", "first"),
    Choice(0, WORDS[0], "0", "tie"),
    Choice(1, WORDS[1], "2", "second"),
)


def choices(rubric: Rubric) -> list[Choice]:
    """Return the choices from the first response's side to the second's."""
    return [choice for choice in CHOICES if choice.value or rubric.allow_tie]


class Question(NamedTuple):
    """A question as it is shown. item: its index in the quiz. number: its position in this attempt, from 1.

    said: the answer given; None while it is open.
    """

    item: int
    number: int
    content: QuizItem
    said: int | None

    @property
    def is_right(self) -> bool:
        return self.said == self.content.answer


def question(standing: Standing, item: int) -> Question:
    assert standing.attempt is not None
    said = standing.attempt.answers.get(str(item))
    number = len(standing.attempt.answers) + (said is None)
    return Question(item, number, standing.items[item], said)


def answered(standing: Standing) -> list[Question]:
    """Return all questions of a finished attempt, wrong answers first."""
    found = [question(standing, item) for item in range(len(standing.items))]
    return sorted(found, key=lambda each: each.is_right)


class QuestionFigures(NamedTuple):
    """How labelers answered a question at their first attempt, with the 95% Wilson interval."""

    content: QuizItem
    answered: int
    right: int
    interval: tuple[float, float] | None

    @property
    def share(self) -> float | None:
        return self.right / self.answered if self.answered else None


def figures(rubric: Rubric, counts: dict[tuple[int, int], int]) -> list[QuestionFigures]:
    found = []
    for at, item in enumerate(map(QuizItem.model_validate, rubric.quiz)):
        total = sum(counts.get((at, value), 0) for value in WORDS)
        right = counts.get((at, item.answer), 0)
        found.append(QuestionFigures(item, total, right, wilson(right, total)))
    return found
