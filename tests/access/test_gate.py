"""One gate for all kinds of tasks: a person who is closed out of one kind is closed out of all, with the same text."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.demonstrations import service as writing
from app.errors import Forbidden
from app.labeling import assigning, outlook
from app.models import Project, ProjectLabeler, ProjectMember, User
from app.red_team import service as attacking
from app.red_team.forms import RatingForm
from app.thumbs import service as thumbs
from app.thumbs.forms import ThumbForm
from tests import factories
from tests.demonstrations import desk as writing_desk
from tests.labeling import desk
from tests.qualification.quizzes import with_quiz
from tests.red_team import attempts

CLOSED = {
    "paused": "Call Bob",
    "removed": "no longer a labeler",
    "left": "no longer a labeler",
    "quiz": "training quiz",
}
Finish = Callable[[], Any]


def close(session: Session, project: Project, labeler: User, why: str) -> None:
    if why == "quiz":
        with_quiz(session, project, version=2)
    elif why == "left":
        session.get_one(ProjectMember, (project.id, labeler.id)).roles = ["operator"]
    else:
        session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.id, state=why, reason="Call Bob."))
    session.flush()


def compare(session: Session, project: Project, labeler: User, _folder: Path) -> Finish:
    factories.comparison(session, project)
    task = desk.take(session, project, labeler)
    return lambda: desk.judge(session, project, labeler, task)


def rank(session: Session, project: Project, labeler: User, _folder: Path) -> Finish:
    desk.ranking(session, project)
    task = desk.take(session, project, labeler)
    return lambda: desk.submit(session, project, labeler, task, preference=None, ranks=[1, 2, 3])


def write(session: Session, project: Project, labeler: User, _folder: Path) -> Finish:
    given = writing_desk.task(session, project)
    assert writing.next_task(session, project, labeler)
    return lambda: writing.submit(session, project, labeler, given.id, writing_desk.answer(given))


def attack(session: Session, project: Project, labeler: User, folder: Path) -> Finish:
    attempt = attempts.send(session, project, labeler, folder)
    attempts.answer(session, attempt)
    return lambda: attacking.rate(session, project, labeler, attempt.id, RatingForm(severity=1))


@pytest.mark.parametrize("why", CLOSED)
@pytest.mark.parametrize("begin", [compare, rank, write, attack])
def test_what_was_begun_and_what_is_new(
    session: Session, tmp_path: Path, begin: Callable[..., Finish], why: str
) -> None:
    project = attempts.project_with_model(session, labeling={"thumbs": True})
    labeler = factories.member(session, project, "labeler")
    factories.rubric(session, project)
    finish = begin(session, project, labeler, tmp_path)
    close(session, project, labeler, why)
    if why == "quiz":  # a newer quiz does not take back open tasks
        finish()
    else:
        with pytest.raises(Forbidden, match=CLOSED[why]):
            finish()

    factories.comparison(session, project)
    writing_desk.task(session, project)
    assert assigning.next_task(session, project, labeler) is None
    assert writing.next_task(session, project, labeler) is None
    told = "removed" if why == "left" else why
    assert outlook.idle(session, project, labeler)[0] == writing.idle(session, project, labeler)[0] == told
    with pytest.raises(Forbidden, match=CLOSED[why]):
        attempts.send(session, project, labeler, tmp_path, "Another.")
    response = factories.completion(session, factories.prompt(session, project))
    digest = hashlib.sha256(response.text.encode()).hexdigest()
    form = ThumbForm(prompt_id=response.prompt_id, digest=digest, liked=True)
    with pytest.raises(Forbidden, match=CLOSED[why]):
        thumbs.give(session, project, labeler, form)
