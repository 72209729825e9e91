"""The page of calibration items: who is right on each item, doubtful answers, and what an admin changes."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.calibration import queries
from app.models import Comparison, Lease, Project, ProjectLabeler, User
from tests import factories

SignIn = Callable[..., Any]


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, slug="p", labeling={"calibration": {"rate": 0.1}})


def item(session: Session, project: Project, gold: int = 2, **values: Any) -> Comparison:
    return factories.comparison(session, project, purpose="calibration", gold=gold, overlap=100, **values)


def say(session: Session, item: Comparison, labelers: list[User], *preferences: int | None) -> None:
    for labeler, preference in zip(labelers, preferences, strict=True):
        factories.judgment(session, item, preference=preference, labeler_id=labeler.id)


def shown(session: Session, project: Project) -> dict[int, queries.Item]:
    viewer = factories.user(session, "admin")
    return {found.id: found for found in queries.items(session, project.id, viewer, 50, 0)}


def test_an_item_that_people_who_are_right_elsewhere_get_wrong_is_doubtful(session: Session, project: Project) -> None:
    good = [factories.user(session) for _ in range(3)]
    bad = factories.user(session)
    people = [*good, bad]
    for _ in range(3):
        say(session, item(session, project), people, 1, 3, 2, -1)
    doubtful, hard = item(session, project), item(session, project, gold=-1)
    say(session, doubtful, people, -1, -2, 1, 3)  # two of the three reliable labelers say A; the known answer is B
    say(session, hard, people, -1, -3, 1, 1)
    items = shown(session, project)
    assert next(iter(items)) == doubtful.id  # first
    found = items[doubtful.id]
    assert (found.answers, found.right, found.reliable, found.reliable_right) == (4, 2, 3, 1)
    assert found.is_doubtful
    found = items[hard.id]
    # Labelers who are wrong on the doubtful item are still right on 3 of 4 others, which is enough.
    assert (found.answers, found.right, found.reliable, found.reliable_right) == (4, 2, 3, 2)
    assert not found.is_doubtful
    assert queries.totals(session, project.id) == (5, 0, 1, 20, 13)


def test_machines_are_counted_apart_and_who_could_not_judge_is_not_right(session: Session, project: Project) -> None:
    measured, person = item(session, project), factories.user(session)
    machines = [factories.user(session, kind="simulated"), factories.user(session, kind="ai_judge")]
    say(session, measured, [person, *machines], None, 2, -2)
    found = shown(session, project)[measured.id]
    assert (found.answers, found.right, found.machines, found.machines_right) == (1, 0, 2, 1)


def test_answers_under_older_versions_and_those_that_stand_no_more(session: Session, project: Project) -> None:
    old = item(session, project)
    say(session, old, [factories.user(session)], 1)
    factories.judgment(session, old, preference=1, superseded_at=datetime.now(UTC), superseded_for="undone")
    factories.rubric(session, project, version=2)
    copy = item(session, project, gold=2, repeat_of_id=old.id)
    say(session, copy, [factories.user(session)], -1)
    (found,) = shown(session, project).values()
    assert (found.id, found.made_of, found.version, found.answers, found.right) == (copy.id, old.id, 2, 2, 1)


def test_an_answer_beyond_a_scale_that_became_shorter_is_shown(
    session: Session, project: Project, sign_in: SignIn
) -> None:
    factories.rubric(session, project, strengths=1, allow_tie=False)
    item(session, project, gold=-3)
    item(session, project, gold=0)
    session.commit()
    html = sign_in("admin").get("/projects/p/calibration").text
    assert re.findall(r"<td>(A is better|Tie)</td>", html) == ["A is better", "Tie"]
    assert re.findall(r"<option [^>]*>([^<]+)</option>", html) == ["A is better", "B is better"] * 2


def test_an_admin_retires_brings_back_and_corrects(session: Session, project: Project, sign_in: SignIn) -> None:
    prompt = factories.prompt(session, project, "What is <b>best</b>?")
    measured = item(session, project, prompt=prompt)
    say(session, measured, [factories.user(session)], -1)
    session.commit()
    admin, base = sign_in("admin"), "/projects/p/calibration"
    html = admin.get(base).text
    assert "What is &lt;b&gt;best&lt;/b&gt;?" in html
    assert "B is better" in html

    sent = admin.post(f"{base}/{measured.id}/retire", {})
    assert sent.headers["location"] == f"{base}?page=0&changed={measured.id}"
    html = admin.get(sent.headers["location"]).text
    assert f"Item {measured.id} changed." in html
    assert "retired" in html
    admin.post(f"{base}/{measured.id}/bring-back", {})
    admin.post(f"{base}/{measured.id}/answer", {"gold": "-3"})
    session.expire_all()
    assert (measured.state, measured.gold) == ("open", -3)
    html = admin.get(base).text
    assert "A is much better" in html
    for words in (
        f"retired item {measured.id}",
        f"brought back item {measured.id}",
        f"changed the known answer of item {measured.id}, from B by 2 to A by 3",
    ):
        assert words in html
    refused = admin.post(f"{base}/{measured.id}/answer", {"gold": "4"})
    assert refused.status_code == 422
    assert "not on the rubric" in refused.text
    assert admin.post(f"{base}/999/retire", {}).status_code == 404
    for role in ("labeler", "operator"):
        assert sign_in(role).get(base).status_code == 403
        assert sign_in(role).post(f"{base}/{measured.id}/retire", {}).status_code == 403


def test_an_admin_who_labels_is_not_told_before_they_give_the_items_up(
    session: Session, project: Project, sign_in: SignIn
) -> None:
    secret = item(session, project, prompt=factories.prompt(session, project, "A secret question?"))
    known = item(session, project, prompt=factories.prompt(session, project, "An answered question?"))
    client = sign_in("admin", "labeler")
    say(session, known, [client.user], 1)
    session.commit()
    html = client.get("/projects/p/calibration").text
    assert "A secret question?" not in html
    assert "An answered question?" in html
    assert "1 item that you may still be asked" in html
    assert client.post("/projects/p/calibration/look?page=0", {}).status_code == 303
    assert "A secret question?" in client.get("/projects/p/calibration").text
    recused = select(Lease.comparison_id).where(Lease.state == "recused", Lease.labeler_id == client.user.id)
    assert session.scalars(recused).all() == [secret.id]


def test_whoever_was_paused_for_a_wrong_known_answer_is_named(
    session: Session, project: Project, sign_in: SignIn
) -> None:
    paused = factories.user(session, name="Grace")
    for said in (1, 1, -1):
        say(session, item(session, project), [paused], said)
    session.add(ProjectLabeler(project_id=project.id, labeler_id=paused.id, state="paused", reason="..."))
    session.commit()
    admin = sign_in("admin")
    assert "Grace" not in admin.get("/projects/p/calibration").text  # 2 of 3 is below 0.7
    wrong = session.scalars(select(Comparison.id).order_by(Comparison.id.desc())).first()
    admin.post(f"/projects/p/calibration/{wrong}/retire", {})
    assert "Grace" in admin.get("/projects/p/calibration").text


def test_without_items_it_says_where_they_come_from_and_many_come_in_pages(
    session: Session, project: Project, sign_in: SignIn
) -> None:
    factories.published_rubric(session, project)
    session.commit()
    admin = sign_in("admin")
    assert "No calibration items yet" in admin.get("/projects/p/calibration").text
    for _ in range(51):
        item(session, project)
    session.commit()
    first, second = (admin.get(f"/projects/p/calibration?page={n}").text for n in (0, 1))
    assert [len(re.findall(r'id="item-\d+"', html)) for html in (first, second)] == [50, 1]
    assert "?page=1" in first
