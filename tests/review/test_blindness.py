"""People who may still judge a comparison do not see other people's judgments on it."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Gone
from app.labeling import answers, assigning
from app.labeling.forms import LabelForm
from app.models import Comparison, Lease, Project, User
from app.review import service
from tests import factories
from tests.review.cases import judged


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


@pytest.fixture
def both(session: Session) -> User:
    """An admin who also labels."""
    return factories.user(session, "admin", "labeler", name="Ada")


@pytest.fixture
def opened(session: Session, project: Project) -> Comparison:
    row = factories.comparison(session, project, overlap=3, flagged=True)
    factories.judgment(session, row, preference=3, rationale="B cites the law.", flags=["harmful"])
    return row


def form(row: Comparison) -> LabelForm:
    return LabelForm(preference=1, idempotency_key=uuid4(), rubric_id=row.rubric_id)


def test_an_open_comparison_is_closed_to_who_may_judge_it(
    session: Session, project: Project, both: User, opened: Comparison, sign_in: Callable[..., Any]
) -> None:
    session.commit()
    client = sign_in(user=both)
    base = f"/projects/{project.slug}/review"
    queue = client.get(f"{base}?queue=flagged").text
    assert "<bdi>harmful</bdi>: " in queue
    assert "for B" not in queue
    shown = client.get(f"{base}/{opened.id}")
    assert shown.status_code == 403
    assert "You may still judge this comparison" in shown.text
    assert "cites the law" not in shown.text
    for action, data in (("verdict", {"verdict": "1"}), ("dismiss-flags", {}), ("withdraw", {"note": "x"})):
        assert client.post(f"{base}/{opened.id}/{action}", data).status_code == 403, action
    # They are still offered it: looking at the closed page gave nothing up.
    assert assigning.next_task(session, project, both) is not None

    # An admin who does not label has nothing to give up.
    assert "cites the law" in sign_in("admin").get(f"{base}/{opened.id}").text


def test_giving_it_up_opens_it_for_good(
    session: Session, project: Project, both: User, opened: Comparison, sign_in: Callable[..., Any]
) -> None:
    task = assigning.next_task(session, project, both)
    assert task is not None
    session.commit()
    client = sign_in(user=both)
    base = f"/projects/{project.slug}/review"
    answer = client.post(f"{base}/{opened.id}/recuse?queue=flagged")
    assert answer.headers["location"] == f"{base}/{opened.id}?queue=flagged"
    assert "cites the law" in client.get(f"{base}/{opened.id}").text
    session.expire_all()
    # The card they held is taken back, and they are not offered it again.
    assert session.scalars(select(Lease.state)).all() == ["recused"]
    assert opened.lease_count == 0
    with pytest.raises(Gone, match="seen other people's judgments"):
        answers.submit(session, project, task.lease_id, both, form(opened))
    assert assigning.next_task(session, project, both) is None
    session.rollback()  # what was locked on the way
    assert client.post(f"{base}/{opened.id}/dismiss-flags?queue=flagged", {}).status_code == 303


def test_a_judgment_given_before_stands_and_cannot_be_changed(
    session: Session, project: Project, both: User, opened: Comparison
) -> None:
    task = assigning.next_task(session, project, both)
    assert task is not None
    judgment = answers.submit(session, project, task.lease_id, both, form(opened))
    with pytest.raises(Forbidden):
        service.open_case(session, project, both, opened.id)
    service.give_up(session, project, both, opened.id)
    assert service.open_case(session, project, both, opened.id).comparison.judgment_count == 2
    with pytest.raises(Conflict, match="seen other people's judgments"):
        answers.edit(session, project, judgment.id, both, form(opened))
    with pytest.raises(Conflict, match="seen other people's judgments"):
        answers.undo(session, project, both)


def test_what_closed_with_ones_own_answer_stays_closed_while_that_can_be_changed(
    session: Session, project: Project, both: User, sign_in: Callable[..., Any]
) -> None:
    row = factories.comparison(session, project, overlap=2)
    factories.judgment(session, row, preference=3, rationale="B cites the law.")
    task = assigning.next_task(session, project, both)
    assert task is not None
    answers.submit(session, project, task.lease_id, both, form(row))
    session.commit()
    session.refresh(row)
    assert row.state in ("settled", "in_review")
    client, base = sign_in(user=both), f"/projects/{project.slug}/review"
    assert client.get(f"{base}/{row.id}").status_code == 403
    session.execute(text("SET LOCAL session_replication_role = replica"))
    session.execute(text("UPDATE judgment SET created_at = created_at - interval '61 minutes'"))
    session.commit()
    assert "cites the law" in client.get(f"{base}/{row.id}").text


def test_who_has_read_a_closed_one_is_not_asked_when_it_opens_again(
    session: Session, project: Project, both: User
) -> None:
    row = judged(session, project, 2, -2)
    service.open_case(session, project, both, row.id)
    service.open_case(session, project, both, row.id)
    service.ask_more(session, project, factories.user(session, "admin"), row.id, more=1)
    assert assigning.next_task(session, project, both) is None
    assert assigning.next_task(session, project, factories.user(session)) is not None
    # And they may follow what comes of it.
    assert service.open_case(session, project, both, row.id).comparison.state == "open"
    assert len(session.scalars(select(Lease.id).where(Lease.labeler_id == both.id)).all()) == 1


def test_who_reviewed_a_comparison_does_not_get_its_calibration_item(session: Session, both: User) -> None:
    project = factories.project(session, labeling={"calibration": {"rate": 1.0}})
    row = judged(session, project, 2, -2)
    service.open_case(session, project, both, row.id)
    service.adjudicate(session, project, both, row.id, verdict=2, calibrate=True)
    usual = factories.comparison(session, project)

    def given(labeler: User) -> int | None:
        task = assigning.next_task(session, project, labeler)
        return task.position.comparison_id if task else None

    assert given(both) == usual.id
    assert given(factories.user(session)) not in (usual.id, None)
