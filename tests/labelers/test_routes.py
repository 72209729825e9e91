"""The labelers' pages: who may see and do what, their content, and refused forms."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import null, select
from sqlalchemy.orm import Session

from app.models import Comparison, LabelerGroup, Project, ProjectLabeler, User
from tests import factories
from tests.labelers.scenes import Habit, judged
from tests.red_team.attempts import rated

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, slug="desk")


def standing(session: Session, project: Project, labeler: User) -> str:
    session.rollback()
    return session.get_one(ProjectLabeler, (project.id, labeler.id), populate_existing=True).state


def test_who_may_see_and_do_what(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    (labeler, _), _ = judged(session, project, [Habit("Ann"), Habit("Bob")], comparisons=4, overlap=2)
    session.commit()
    base = "/projects/desk/labelers"
    one = f"{base}/{labeler.id}"
    operator, admin, other = sign_in("operator"), sign_in("admin"), sign_in("labeler")
    for url in (base, one):
        assert (operator.get(url).status_code, other.get(url).status_code) == (200, 403)
    for url in (f"{base}/groups", f"{one}/remove"):
        assert (admin.get(url).status_code, operator.get(url).status_code, other.get(url).status_code) == (
            200,
            403,
            403,
        )
    assert operator.post(f"{base}/refit").status_code == 303
    for url, data in ((f"{one}/pause", {"message": "x"}), (f"{one}/remove", {"reason": "x"}), (f"{one}/resume", {})):
        assert operator.post(url, data=data).status_code == 403
    # The operator's page holds no button that would be refused.
    assert "Remove with all judgments" not in operator.get(one).text
    assert "Remove with all judgments" in admin.get(one).text
    for url in (f"{base}/999999", f"{base}/{2**70}", f"{base}/999999/remove"):
        assert admin.get(url).status_code == 404
    # Somebody of another project has nothing to do with this one.
    assert admin.get(f"{base}/{factories.user(session).id}").status_code == 404


def test_an_empty_project_says_so(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    session.commit()
    admin = sign_in("admin")
    assert "No labelers yet" in admin.get("/projects/desk/labelers").text
    assert "There are no groups yet" in admin.get("/projects/desk/labelers/groups").text
    assert admin.post("/projects/desk/labelers/refit").status_code == 303
    assert admin.get("/projects/desk/labelers?kind=nobody").status_code == 422


def test_names_and_messages_are_text(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    (labeler, _), _ = judged(session, project, [Habit(HOSTILE), Habit("Bob")], comparisons=4, overlap=2)
    session.commit()
    admin = sign_in("admin")
    one = f"/projects/desk/labelers/{labeler.id}"
    admin.post(f"{one}/pause", data={"message": HOSTILE})
    admin.post("/projects/desk/labelers/groups", data={"name": HOSTILE})
    group = session.scalars(select(LabelerGroup)).one()
    admin.post(f"/projects/desk/labelers/groups/{group.id}/members", data={"labeler_ids": [labeler.id]})
    for url in ("/projects/desk/labelers", one, f"{one}/remove", "/projects/desk/labelers/groups"):
        shown = admin.get(url).text
        assert HOSTILE not in shown
        assert "&lt;script&gt;" in shown


def test_a_refused_form_keeps_what_was_typed(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    (labeler, _), _ = judged(session, project, [Habit("Ann"), Habit("Bob")], comparisons=2, overlap=2)
    session.commit()
    admin = sign_in("admin")
    one = f"/projects/desk/labelers/{labeler.id}"
    refused = admin.post(f"{one}/pause", data={"message": " "})
    assert refused.status_code == 422
    assert "The message is empty." in refused.text
    refused = admin.post(f"{one}/remove", data={"reason": " "})
    assert refused.status_code == 422
    assert "The reason is empty." in refused.text
    assert admin.post("/projects/desk/labelers/groups", data={"name": "Law"}).status_code == 303
    refused = admin.post("/projects/desk/labelers/groups", data={"name": "Law"})
    assert refused.status_code == 409
    assert 'value="Law"' in refused.text


def test_the_list_has_pages(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    judged(session, project, [Habit(f"Labeler {i:03}") for i in range(120)], comparisons=120, overlap=2)
    session.commit()
    admin = sign_in("admin")
    first, second = (admin.get(f"/projects/desk/labelers?page={n}").text for n in (0, 1))
    assert first.count('scope="row"') == 100
    assert second.count('scope="row"') == 20
    assert "Page 1 of 2" in first
    names = {name for name in (f"Labeler {i:03}" for i in range(120)) if name in first or name in second}
    assert len(names) == 120


def test_somebody_of_two_projects_has_a_line_of_both(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    (labeler,), ids = judged(session, project, [Habit("Ann")], comparisons=3, overlap=1)
    other = factories.project(session, name="The other one")
    factories.judgment(session, factories.comparison(session, other), preference=1, labeler_id=labeler.id)
    session.commit()
    shown = sign_in("admin").get(f"/projects/desk/labelers/{labeler.id}").text
    assert "The other one" in shown
    assert "4 judgments together" in shown
    assert len(ids) == 3


def test_a_removal_by_its_form(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    (spam, _), ids = judged(session, project, [Habit("Spam"), Habit("Bob")], comparisons=3, overlap=2)
    session.commit()
    admin = sign_in("admin")
    one = f"/projects/desk/labelers/{spam.id}"
    asked = admin.get(f"{one}/remove").text
    assert "3 judgments" in asked
    assert "3 comparisons" in asked
    assert admin.post(f"{one}/remove", data={"reason": "spam"}).status_code == 303
    assert standing(session, project, spam) == "removed"
    states = session.scalars(select(Comparison.state).where(Comparison.id.in_(ids))).all()
    assert set(states) == {"open"}
    shown = admin.get(one).text
    assert "removed" in shown
    assert "spam" in shown
    assert "This labeler was already removed" in admin.get(f"{one}/remove").text


def test_a_removal_counts_thumbs(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    (spam, _), _ = judged(session, project, [Habit("Spam"), Habit("Bob")], comparisons=3, overlap=2)
    completion = factories.completion(session, factories.prompt(session, project))
    thumb = factories.thumb(session, completion, liked=True, labeler_id=spam.id)
    session.commit()
    admin = sign_in("admin")
    one = f"/projects/desk/labelers/{spam.id}"
    assert "Remove 3 judgments and 1 thumb" in admin.get(f"{one}/remove").text
    assert admin.post(f"{one}/remove", data={"reason": "spam"}).status_code == 303
    session.refresh(thumb)
    assert thumb.superseded_for == "removed"


def test_a_removal_offers_to_withdraw_what_somebody_wrote(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    (ann, bob), _ = judged(session, project, [Habit("Ann"), Habit("Bob")], comparisons=3, overlap=2)
    rows = [
        factories.demonstration(session, factories.prompt(session, project), author_id=labeler.id)
        for labeler in (ann, bob)
    ]
    session.commit()
    admin = sign_in("admin")
    asked = admin.get(f"/projects/desk/labelers/{ann.id}/remove").text
    assert "Also withdraw what they wrote: 1 demonstration" in asked
    with_it = {"reason": "consent withdrawn", "with_written": "true"}
    assert admin.post(f"/projects/desk/labelers/{ann.id}/remove", data=with_it).status_code == 303
    assert admin.post(f"/projects/desk/labelers/{bob.id}/remove", data={"reason": "spam"}).status_code == 303
    session.rollback()
    for row in rows:
        session.refresh(row)
    assert [row.state for row in rows] == ["withdrawn", "approved"]
    # What was left can be withdrawn afterwards.
    one = f"/projects/desk/labelers/{bob.id}"
    assert "Withdraw what they wrote" in admin.get(one).text
    assert "Their written work still counts" in admin.get(f"{one}/remove").text
    assert admin.post(f"{one}/withdraw-written", data={"reason": "consent withdrawn"}).status_code == 303
    assert "Withdraw what they wrote" not in admin.get(one).text
    assert "written work withdrawn" in admin.get(one).text
    refused = admin.post(f"{one}/withdraw-written", data={"reason": "again"})
    assert refused.status_code == 409
    assert "Nothing written by this labeler still counts" in refused.text
    assert sign_in("operator").post(f"{one}/withdraw-written", data={"reason": "x"}).status_code == 403
    shown = admin.get(f"/projects/desk/demonstrations/{rows[0].id}").text
    assert "Withdrawn" in shown


def test_a_withdrawn_attempt_is_shown_as_one(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    admin = sign_in("admin")
    unanswered, answered = (rated(session, project, 2, author_id=admin.user.id) for _ in range(2))
    unanswered.answer, unanswered.severity, unanswered.rated_at = null(), None, None
    unanswered.withdrawn_at = answered.withdrawn_at = datetime.now(UTC)
    session.commit()
    base = "/projects/desk/red-team"
    assert "Withdrawn before the model answered" in admin.get(f"{base}/{unanswered.id}").text
    assert "Sure." in admin.get(f"{base}/{answered.id}").text
    for shown in (admin.get(f"{base}/attempts").text, admin.get(f"{base}/attempts?state=withdrawn").text):
        assert shown.count(">withdrawn</span>") == 2
