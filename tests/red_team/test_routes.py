"""The pages of red teaming: access, polling that stops, and refused forms that keep what was typed."""

import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from app.models import Project, User
from app.rounds import service as rounds
from tests import factories
from tests.conftest import SignedIn
from tests.qualification.quizzes import with_quiz
from tests.red_team.attempts import answer, attempts, project_with_model, rated, run_of, send

SignIn = Callable[..., SignedIn]
HTMX = {"HX-Request": "true"}
HOSTILE = '<script>alert(1)</script> <img src=x onerror=alert(2)> [x](javascript:alert(3)) \u202eevil "quoted"'


def base(project: Project) -> str:
    return f"/projects/{project.slug}/red-team"


def typed(text: str = "Tell me how.", **values: str) -> dict[str, str]:
    return {"idempotency_key": str(uuid4()), "text": text, "safety_category": "privacy"} | values


@pytest.mark.parametrize(
    ("roles", "path", "status"),
    [
        (("labeler",), "", 200),
        (("labeler",), "/attempts", 403),
        (("labeler",), "/999", 404),
        (("labeler",), f"/{2**70}", 404),
        (("admin",), "", 303),
        (("admin",), "/attempts", 200),
        (("operator",), "/attempts", 200),
        ((), "", 303),
    ],
)
def test_who_sees_what(session: Session, sign_in: SignIn, roles: tuple[str, ...], path: str, status: int) -> None:
    project = project_with_model(session)
    session.commit()
    assert sign_in(*roles).get(base(project) + path).status_code == status


def test_an_attempt_is_seen_by_its_author_and_staff(session: Session, sign_in: SignIn, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session, "labeler")
    attempt = send(session, project, ann, tmp_path)
    session.commit()
    here = f"{base(project)}/{attempt.id}"
    assert sign_in(user=ann).get(here).status_code == 200
    assert sign_in("operator").get(here).status_code == 200
    other = sign_in("labeler")
    assert other.get(here).status_code == other.get(here + "/answer").status_code == 403
    assert other.post(here + "/again").status_code == 403
    assert other.post(here + "/rating", {"severity": "1"}).status_code == 403
    for roles in (("labeler",), ("operator",)):
        form = {"attempts": str(attempt.id), "split": "train"}
        assert sign_in(*roles).post(f"{base(project)}/attempts/accept", form).status_code == 403


def test_a_project_without_a_model_says_so(session: Session, sign_in: SignIn) -> None:
    project = factories.project(session)
    session.commit()
    labeler = sign_in("labeler")
    assert "This project has no model" in labeler.get(base(project)).text
    assert f'href="{base(project)}"' not in labeler.get(f"/projects/{project.slug}").text
    refused = labeler.post(base(project), typed())
    assert refused.status_code == 422
    assert "no model that could answer" in refused.text
    assert "This project has no model" in sign_in("admin").get(base(project) + "/attempts").text


def test_what_is_refused_comes_back_as_it_was_typed(session: Session, sign_in: SignIn) -> None:
    project, labeler = project_with_model(session), sign_in("labeler")
    session.commit()
    form = typed("My prompt", safety_category="", goal="My goal", domain="My domain")
    refused = labeler.post(base(project), form)
    assert refused.status_code == 422
    assert "safety_category" in refused.text
    for value in ("My prompt", "My goal", "My domain", form["idempotency_key"]):
        assert value in refused.text
    sent = labeler.post(base(project), form | {"safety_category": "hate"})
    assert sent.status_code == 303
    assert labeler.post(base(project), form | {"safety_category": "hate"}).headers == sent.headers
    assert len(attempts(session)) == 1
    other = labeler.post(base(project), form | {"safety_category": "hate", "text": "Another prompt"})
    assert other.status_code == 409
    assert "Another prompt" in other.text
    assert form["idempotency_key"] not in other.text  # with a new key it can be sent


def test_polling_goes_on_until_there_is_an_answer(session: Session, sign_in: SignIn, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session, "labeler")
    training = factories.run(session, project, "ppo", state="running", progress_done=3, progress_total=9)
    attempt = send(session, project, ann, tmp_path)
    session.commit()
    labeler, here = sign_in(user=ann), f"{base(project)}/{attempt.id}"
    part = labeler.get(here + "/answer", headers=HTMX).text
    assert "<html" not in part
    assert f"busy with run {training.id}" in part
    assert "3 of 9" in part
    assert f'hx-get="{here}/answer"' in part
    training.state = "succeeded"
    session.commit()
    assert "No worker is running" in labeler.get(here).text
    assert "hx-trigger" in labeler.get(f"{base(project)}/own").text
    answer(session, attempt, "I **will** not.")
    session.commit()
    part = labeler.get(here + "/answer", headers=HTMX).text
    assert "I <strong>will</strong> not." in part
    assert "hx-get" not in part
    assert "hx-trigger" not in labeler.get(f"{base(project)}/own").text


def test_a_failure_is_told_by_name_and_can_be_tried_again(session: Session, sign_in: SignIn, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session, "labeler")
    attempt = send(session, project, ann, tmp_path)
    rounds.run_failed(session, run_of(session, attempt), "The artifact models/base is not there.")
    session.commit()
    labeler, here = sign_in(user=ann), f"{base(project)}/{attempt.id}"
    part = labeler.get(here + "/answer", headers=HTMX).text
    assert "The artifact models/base is not there." in part
    assert "Ask again" in part
    assert "hx-get" not in part
    assert "Ask again" not in sign_in("operator").get(here).text
    assert labeler.post(here + "/again").headers["location"] == here
    assert "hx-get" in labeler.get(here + "/answer").text


def test_an_attempt_is_rated_with_tags(session: Session, sign_in: SignIn, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session, "labeler")
    attempt = send(session, project, ann, tmp_path)
    session.commit()
    labeler, here = sign_in(user=ann), f"{base(project)}/{attempt.id}"
    early = labeler.post(here + "/rating", {"severity": "1"})
    assert early.status_code == 409
    assert "not answered yet" in early.text
    answer(session, attempt)
    session.commit()
    for wrong in ({}, {"severity": "4"}, {"severity": "x"}, {"severity": "1", "own_tag": "x" * 41}):
        assert labeler.post(here + "/rating", wrong).status_code == 422
    form = {"severity": "2", "tags": ["hate", "jailbreak"], "own_tag": "Ruse", "note": "Hm"}
    done = labeler.post(here + "/rating", form)
    assert done.headers["location"] == f"{base(project)}?rated={attempt.id}"
    (row,) = attempts(session)
    assert (row.severity, row.tags, row.note) == (2, ["hate", "jailbreak", "ruse"], "Hm")
    shown = labeler.get(here).text
    assert re.search(r'value="2" data-key="2" required checked', shown)
    assert 'name="own_tag" maxlength="40" value="ruse"' in shown


def test_staff_accept_in_bulk(session: Session, sign_in: SignIn, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session, "labeler")
    ids = [rated(session, project, severity, "hate").id for severity in (0, 3)]
    waiting = send(session, project, ann, tmp_path)
    session.commit()
    admin = sign_in("admin")
    shown = admin.get(f"{base(project)}/attempts").text
    assert shown.count('type="checkbox" name="attempts"') == 2
    assert 'name="attempts"' not in sign_in("operator").get(f"{base(project)}/attempts").text
    accept = f"{base(project)}/attempts/accept"
    assert admin.post(accept, {"split": "train"}).status_code == 422
    assert admin.post(accept, {"split": "calibration", "attempts": ids}).status_code == 422
    done = admin.post(accept, {"split": "regression", "attempts": [*ids, waiting.id]})
    assert done.headers["location"].endswith("?new=2&known=0&unrated=1")
    told = " ".join(admin.get(done.headers["location"]).text.split())
    assert "2 attempts are prompts of the project now." in told
    assert "1 is not rated yet and was left out" in told
    assert [row.prompt_id is not None for row in attempts(session)] == [True, True, False]


def test_hostile_texts_stay_texts(session: Session, sign_in: SignIn) -> None:
    project, labeler, admin = project_with_model(session), sign_in("labeler"), sign_in("admin")
    session.commit()
    text = HOSTILE + " </textarea><script>alert(4)</script>"
    refused = labeler.post(base(project), typed(text, safety_category="", goal=text, domain=HOSTILE[:90]))
    sent = labeler.post(base(project), typed(text, safety_category=HOSTILE[:90], goal=text, domain=HOSTILE[:90]))
    here = sent.headers["location"]
    (row,) = attempts(session)
    answer(session, row, text)
    session.commit()
    rating = {"severity": "3", "own_tag": "<b onclick=x>&", "tags": ["<script>alert(5)</script>"], "note": text}
    pages = [refused.text, labeler.get(here).text]
    assert labeler.post(here + "/rating", rating).status_code == 303
    pages += [labeler.get(here).text, labeler.get(base(project)).text]
    pages += [admin.get(f"{base(project)}/attempts").text, admin.get(here).text]
    for html in pages:
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert "<b onclick" not in html
        assert 'href="javascript:' not in html
        assert "alert(1)" in html


def test_a_project_is_not_reached_through_another(session: Session, sign_in: SignIn) -> None:
    project, other = project_with_model(session), project_with_model(session)
    ann: User = factories.user(session, "labeler", "admin")
    attempt = rated(session, other, 2, author_id=ann.id)
    session.commit()
    client = sign_in(user=ann)
    assert client.get(f"{base(project)}/{attempt.id}").status_code == 404
    assert client.post(f"{base(project)}/{attempt.id}/rating", {"severity": "0"}).status_code == 404
    client.post(f"{base(project)}/attempts/accept", {"attempts": [attempt.id], "split": "train"})
    assert attempts(session)[0].prompt_id is None


def test_a_waiting_attempt_is_cancelled_by_its_author_alone(session: Session, sign_in: SignIn, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session, "labeler")
    attempt = send(session, project, ann, tmp_path)
    session.commit()
    labeler, here = sign_in(user=ann), f"{base(project)}/{attempt.id}"
    assert "Cancel the attempt" in labeler.get(here).text
    assert "Cancel the attempt" not in sign_in("operator").get(here).text
    assert sign_in("labeler").post(here + "/cancel").status_code == 403
    assert labeler.post(here + "/cancel").headers["location"] == here
    page = labeler.get(here).text
    assert "Cancelled" in page
    assert "Ask again" in page
    assert "Cancel the attempt" not in page
    assert "hx-get" not in labeler.get(here + "/answer", headers=HTMX).text


def test_who_has_to_take_the_quiz_first_keeps_what_they_wrote(session: Session, sign_in: SignIn) -> None:
    project, labeler = project_with_model(session), sign_in("labeler")
    with_quiz(session, project)
    session.commit()
    page = labeler.get(base(project)).text
    assert f'href="/projects/{project.slug}/quiz"' in page
    assert 'class="card stack attempt-form"' not in page
    refused = labeler.post(base(project), typed("My long prompt"))  # from a page that was open before
    assert refused.status_code == 403
    assert "My long prompt" in refused.text
    assert attempts(session) == []
