"""Whether labelers who passed the quiz of an earlier version have to take a new version's quiz."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from app.domain import textdiff
from app.models import Rubric

# The admin's choice when publishing; `changed`: only if the quiz asks something else now.
Retake = Literal["changed", "yes", "no"]
RETAKES: tuple[Retake, ...] = get_args(Retake)
# If less than this share of a question's text is kept, it is a different question.
LEAST_KEPT = 0.5

Question = Mapping[str, Any]


def is_same(old: Sequence[Question], new: Sequence[Question]) -> bool:
    """Tell whether two quizzes ask the same: the same number of questions in the same order, with the same right
    answers.

    Only their wording may have changed a little. Explanations do not count.
    """
    return len(old) == len(new) and all(map(_is_same, old, new))


def _is_same(old: Question, new: Question) -> bool:
    return old["answer"] == new["answer"] and textdiff.kept(_asked(old), _asked(new)) >= LEAST_KEPT


def _asked(question: Question) -> str:
    return "\n".join(question[field] for field in ("prompt", "first", "second"))


def same_as(quiz: Sequence[Question], before: Sequence[Rubric], retake: Retake) -> int | None:
    """Return the version whose quiz counts for the new one; None if everybody has to pass the new quiz.

    Args:
        before: published versions, newest first.
    """
    with_quiz = [rubric for rubric in before if rubric.quiz] if quiz else []
    for rubric in with_quiz:
        if retake == "no" or (retake == "changed" and is_same(rubric.quiz, quiz)):
            return rubric.quiz_version
    return None
