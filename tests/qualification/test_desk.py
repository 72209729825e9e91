"""Labelers who have not passed the quiz are sent to it before they get anything to judge."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.documents import RubricContent
from app.labeling import assigning
from app.models import Judgment, Lease, Project, ProjectLabeler, User
from app.rubrics import service as rubrics
from tests import factories
from tests.conftest import SignedIn
from tests.qualification.quizzes import QUIZ, take, with_quiz

SignIn = Callable[..., SignedIn]
JSON = {"accept": "application/json"}


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    with_quiz(session, project)
    factories.comparison(session, project)
    factories.comparison(session, project)
    session.commit()
    return project


def passes(session: Session, project: Project, labeler: User | None) -> None:
    assert labeler
    take(session, project, labeler)
    session.commit()


def test_from_the_desk_to_the_quiz_and_back(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler, url = sign_in("labeler"), f"/projects/{project.slug}"
    assert labeler.get("/label").headers["location"] == f"{url}/label"
    assert labeler.get(f"{url}/label").headers["location"] == f"{url}/quiz"
    answer = labeler.get(f"{url}/label", headers=JSON).json()  # what a page that was open before asks for
    assert f'href="{url}/quiz"' in answer["desk"]
    assert session.scalar(select(func.count()).select_from(Lease)) == 0
    passes(session, project, labeler.user)
    page = labeler.get(f"{url}/label")
    assert page.status_code == 200
    assert "Which response is better?" in page.text


def test_a_card_on_the_desk_is_finished_before_a_new_quiz(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler, url = sign_in("labeler"), f"/projects/{project.slug}"
    passes(session, project, labeler.user)
    assert labeler.user
    task = assigning.next_task(session, project, labeler.user)
    assert task
    admin = factories.user(session, "admin")
    rubrics.publish(session, project, RubricContent(guideline="New.", quiz=QUIZ[:1]), 0, admin)
    session.commit()
    assert "Which response is better?" in labeler.get(f"{url}/label").text
    form = {"idempotency_key": str(uuid4()), "rubric_id": task.rubric.id, "preference": "1"}
    answer = labeler.post(f"{url}/label/{task.lease_id}", form, headers=JSON)
    assert answer.status_code == 200
    assert f'href="{url}/quiz"' in answer.json()["desk"]
    assert session.scalar(select(func.count()).select_from(Judgment)) == 1
    assert labeler.get(f"{url}/label").headers["location"] == f"{url}/quiz"


def test_who_is_paused_is_told_so_and_not_sent_to_the_quiz(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler = sign_in("labeler")
    assert labeler.user
    session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.user.id, state="paused", reason="Too fast."))
    session.commit()
    assert labeler.get(f"/projects/{project.slug}/label").status_code == 200
