"""The quiz's pages: access, content, and answers that are sent twice, late or broken."""

import re
from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Qualification
from tests import factories
from tests.conftest import SignedIn
from tests.qualification.quizzes import take, with_quiz

SignIn = Callable[..., SignedIn]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    with_quiz(session, project, guideline="Prefer **short** ones.")
    session.commit()
    return project


def attempts(session: Session) -> list[Qualification]:
    session.rollback()
    session.expire_all()
    return list(session.scalars(select(Qualification).order_by(Qualification.id)))


def test_who_may(sign_in: SignIn, project: Project) -> None:
    url = f"/projects/{project.slug}/quiz"
    for roles in (("admin",), ("operator",)):
        client = sign_in(*roles)
        assert client.get(url).status_code == 403
        assert client.post(url).status_code == 403
        assert client.post(f"{url}/1/0", {"answer": "1"}).status_code == 403
        assert client.get(f"{url}/people").status_code == 200
    labeler = sign_in("labeler")
    assert labeler.get(url).status_code == 200
    assert labeler.get(f"{url}/people").status_code == 403
    assert labeler.post(url, csrf=False).status_code == 403


def test_from_the_first_question_to_the_result(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler, url = sign_in("labeler"), f"/projects/{project.slug}/quiz"
    page = labeler.get(url).text
    assert "3 questions" in page
    assert "You need 3 right answers to pass" in page  # 0.8 of 3
    assert "<strong>short</strong>" in page
    assert labeler.post(url).headers["location"] == url
    [attempt] = attempts(session)
    page = labeler.get(url).text
    assert "Question 1 of 3" in page
    assert "Capital of France?" in page
    assert "Paris it is." not in page, "the explanation comes after the answer"
    after = labeler.post(f"{url}/{attempt.id}/0", {"answer": "-1"}).headers["location"]
    assert after == f"{url}?after=0"
    page = labeler.get(after).text
    assert "Right: question 1 of 3" in page
    assert "Paris it is." in page
    assert 'name="answer"' not in page
    page = labeler.get(url).text
    assert "Question 2 of 3" in page
    page = labeler.get(labeler.post(f"{url}/{attempt.id}/1", {"answer": "1"}).headers["location"]).text
    assert "Not quite: tie. You said: second is better." in page
    page = labeler.get(labeler.post(f"{url}/{attempt.id}/2", {"answer": "1"}).headers["location"]).text
    assert "Show the result" in page
    page = labeler.get(url).text
    assert "Not passed yet" in page
    assert "2 of 3 right" in page
    assert page.index("No difference.") < page.index("Paris it is."), "the wrong ones first"
    labeler.post(url)
    assert [each.attempt for each in attempts(session)] == [1, 2]


def test_answers_sent_twice_late_or_broken(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler, url = sign_in("labeler"), f"/projects/{project.slug}/quiz"
    labeler.post(url)
    [attempt] = attempts(session)
    answer = labeler.post(f"{url}/{attempt.id}/0", {})
    assert answer.status_code == 422
    assert "No answer was chosen." in answer.text
    assert "Capital of France?" in answer.text
    assert labeler.post(f"{url}/{attempt.id}/0", {"answer": "5"}).status_code == 422
    assert labeler.post(f"{url}/{attempt.id}/0", {"answer": "x"}).status_code == 422
    assert labeler.post(f"{url}/{attempt.id}/9", {"answer": "1"}).status_code == 404
    late = labeler.post(f"{url}/{attempt.id + 1}/0", {"answer": "1"})
    assert late.status_code == 409
    assert "Question 1 of 3" in late.text
    assert sign_in("labeler").post(f"{url}/{attempt.id}/0", {"answer": "1"}).status_code == 409
    labeler.post(f"{url}/{attempt.id}/0", {"answer": "1"})
    assert labeler.post(f"{url}/{attempt.id}/0", {"answer": "-1"}).status_code == 303
    [attempt] = attempts(session)
    assert attempt.answers == {"0": 1}
    assert "Question 2 of 3" in labeler.get(f"{url}?after=2").text, "an unanswered question shows no explanation"


def test_a_project_without_a_quiz(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    session.commit()
    url = f"/projects/{project.slug}/quiz"
    labeler = sign_in("labeler")
    assert "no training quiz" in labeler.get(url).text
    assert labeler.post(url).status_code == 404
    assert "No version of the rubric has a quiz" in sign_in("admin").get(f"{url}/people").text


def test_what_staff_see(sign_in: SignIn, session: Session, project: Project) -> None:
    labeler = factories.user(session, name="<b>Ann</b>")
    attempt = take(session, project, labeler)
    session.commit()
    admin, url = sign_in("admin"), f"/projects/{project.slug}/quiz/people"
    page = admin.get(url).text
    row = re.search(r"<tr>\s*<td class=\"who\">.*?</tr>", page, re.DOTALL)
    assert row
    assert "&lt;b&gt;Ann&lt;/b&gt;" in row[0]
    assert "✓ passed" in row[0]
    assert "3 of 3" in row[0]
    assert page.count("100%") >= 3
    assert admin.get(f"{url}?version=1").status_code == 200
    assert admin.get(f"{url}?version=2").status_code == 404
    assert admin.get(f"{url}?page=0").status_code == 422
    assert attempt.passed


def test_hostile_questions_are_shown_as_text(sign_in: SignIn, session: Session) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e[x](javascript:alert(1))"
    project = factories.project(session)
    item = {"prompt": hostile, "first": hostile, "second": hostile, "answer": -1, "feedback": hostile}
    with_quiz(session, project, guideline=hostile, quiz=[item])
    session.commit()
    labeler, url = sign_in("labeler"), f"/projects/{project.slug}/quiz"
    pages = [labeler.get(url)]
    labeler.post(url)
    [attempt] = attempts(session)
    pages += [labeler.get(url), labeler.get(labeler.post(f"{url}/{attempt.id}/0", {"answer": 1}).headers["location"])]
    pages += [labeler.get(url), sign_in("admin").get(f"{url}/people")]
    for page in pages:
        assert page.status_code == 200
        body = page.text.replace('<script src="/static', "")
        assert "<script" not in body
        assert "<img" not in body
        assert 'href="javascript' not in body
