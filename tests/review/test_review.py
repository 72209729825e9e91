"""The review queue and what a reviewer decides."""

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.errors import Conflict, InvalidInput, NotFound
from app.labeling import assigning, settling
from app.models import Adjudication, AuditEvent, Comparison, Project, User
from app.review import queries, service, views
from tests import factories


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


@pytest.fixture
def reviewer(session: Session) -> User:
    return factories.user(session, "admin", name="Ada")


def split(session: Session, project: Project, *preferences: int, **values: Any) -> Comparison:
    """A comparison with these judgments, settled by the labeling rule."""
    row = factories.comparison(session, project, overlap=len(preferences), **values)
    for preference in preferences:
        factories.judgment(session, row, preference=preference, rationale=f"because {preference}")
    settling.settle(session, [row.id])
    session.refresh(row)
    return row


def test_the_queue_has_split_comparisons_lowest_agreement_first(session: Session, project: Project) -> None:
    three_to_two = split(session, project, 1, 1, 1, -1, -1)  # 4 of 10 pairs
    opposed = split(session, project, 2, -2)  # 0 of 1
    two_to_one = split(session, project, 1, 1, -1)  # 1 of 3
    split(session, project, 1, 3)  # agrees
    split(session, factories.project(session), 1, -1)  # elsewhere
    found = queries.queue(session, project.id, None)
    assert [row.place.comparison_id for row in found] == [opposed.id, two_to_one.id, three_to_two.id]
    assert [row.place.agreement for row in found] == pytest.approx([0, 1 / 3, 0.4])
    assert found[0].preferences == [-2, 2]
    assert queries.waiting(session, project.id) == 3


def test_paging_goes_through_equal_agreements(session: Session, project: Project) -> None:
    rows = [split(session, project, 1, -1) for _ in range(5)]
    first = queries.queue(session, project.id, None, limit=2)
    second = queries.queue(session, project.id, first[-1].place, limit=2)
    third = queries.queue(session, project.id, second[-1].place, limit=2)
    found = [row.place.comparison_id for row in (*first, *second, *third)]
    assert found == [row.id for row in rows]


def test_a_verdict_settles_the_comparison(session: Session, project: Project, reviewer: User) -> None:
    row = split(session, project, 2, -2)
    service.adjudicate(session, project, reviewer, row.id, verdict=-3, note=" A cites the source. ")
    assert (row.state, row.consensus) == ("adjudicated", -3.0)
    assert row.settled_at is not None
    stored = session.scalars(select(Adjudication)).one()
    assert (stored.reviewer_id, stored.verdict, stored.note) == (reviewer.id, -3, "A cites the source.")
    event = session.scalars(select(AuditEvent)).one()
    assert (event.action, event.actor_id, event.project_id) == ("review.adjudicated", reviewer.id, project.id)
    assert event.details["verdict"] == -3
    assert queries.waiting(session, project.id) == 0


def test_more_labelers_and_then_it_settles_anew(session: Session, project: Project, reviewer: User) -> None:
    row = split(session, project, 2, -2)
    service.ask_more(session, project, reviewer, row.id, more=2)
    assert (row.state, row.overlap) == ("open", 4)
    assert assigning.next_task(session, project, factories.user(session)) is not None
    session.refresh(row)
    for lease in session.scalars(select(factories.Lease).where(factories.Lease.comparison_id == row.id)):
        lease.state = "released"
    session.flush()
    for _ in range(2):
        factories.judgment(session, row, preference=2)
    settling.settle(session, [row.id])
    session.refresh(row)
    assert (row.state, row.agreement) == ("in_review", 0.5)  # three to one: 3 of 6 pairs
    service.ask_more(session, project, reviewer, row.id, more=1)
    factories.judgment(session, row, preference=3)
    settling.settle(session, [row.id])
    session.refresh(row)
    assert (row.state, row.agreement) == ("settled", 0.6)  # four to one: 6 of 10


def test_withdrawing(session: Session, project: Project, reviewer: User) -> None:
    row = split(session, project, 2, -2)
    service.withdraw(session, project, reviewer, row.id, note="Both leak a name.")
    assert row.state == "withdrawn"
    event = session.scalars(select(AuditEvent)).one()
    assert (event.action, event.details["note"]) == ("review.withdrawn", "Both leak a name.")


def test_the_second_of_two_reviewers_hears_who_was_first(
    session: Session, engine: Engine, project: Project, reviewer: User
) -> None:
    row = split(session, project, 2, -2)
    second = factories.user(session, "admin", name="Bea")
    session.commit()
    waiting, failed = threading.Event(), []

    def decide_second() -> None:
        with make_session_factory(engine)() as other, other.begin():
            project_, reviewer_ = other.get_one(Project, project.id), other.get_one(User, second.id)
            waiting.set()
            try:
                service.adjudicate(other, project_, reviewer_, row.id, verdict=3)
            except Conflict as error:
                failed.append(str(error))

    service.adjudicate(session, project, reviewer, row.id, verdict=-1)
    thread = threading.Thread(target=decide_second)
    thread.start()  # waits for the lock that the first one holds until its commit
    assert waiting.wait(10)
    session.commit()
    thread.join(10)
    assert failed == [
        "Ada already gave the verdict on this comparison. Nothing was changed. "
        "Go on with the next one in the review queue."
    ]
    assert session.scalars(select(Adjudication.verdict)).all() == [-1]


def test_who_did_something_else_with_it_is_named_too(session: Session, project: Project, reviewer: User) -> None:
    asked, withdrawn = (split(session, project, 2, -2) for _ in range(2))
    never = factories.comparison(session, project)
    service.ask_more(session, project, reviewer, asked.id, more=1)
    service.withdraw(session, project, reviewer, withdrawn.id)
    with pytest.raises(Conflict, match="Ada already asked more labelers"):
        service.withdraw(session, project, reviewer, asked.id)
    with pytest.raises(Conflict, match="Ada already withdrew"):
        service.adjudicate(session, project, reviewer, withdrawn.id, verdict=0)
    with pytest.raises(Conflict, match="not in review any more"):
        service.adjudicate(session, project, reviewer, never.id, verdict=0)
    with pytest.raises(NotFound):
        service.adjudicate(session, factories.project(session), reviewer, asked.id, verdict=0)


def test_a_verdict_stays_on_the_rubrics_scale(session: Session, project: Project, reviewer: User) -> None:
    factories.rubric(session, project, strengths=1)
    row = split(session, project, 1, -1)
    with pytest.raises(InvalidInput, match="outside the rubric's scale"):
        service.adjudicate(session, project, reviewer, row.id, verdict=2)
    assert [step.value for step in views.steps(1)] == [-1, 0, 1]
    assert [(step.key, step.label) for step in views.steps(3)] == [
        (1, "A is much better"),
        (2, "A is better"),
        (3, "A is slightly better"),
        (4, "Tie"),
        (5, "B is slightly better"),
        (6, "B is better"),
        (7, "B is much better"),
    ]


def test_the_next_item_comes_after_each_decision(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    first, second, third = (split(session, project, 1, -1) for _ in range(3))
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/review"
    # Later: the next one, without a decision.
    assert admin.get(f"{base}/next?agreement=0.0&after={first.id}").headers["location"] == f"{base}/{second.id}"
    answer = admin.post(f"{base}/{second.id}/verdict", {"verdict": "2", "note": "x"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{base}/{third.id}")
    # From the end back to the start, where the first one still waits.
    assert admin.post(f"{base}/{third.id}/more", {"more": "2"}).headers["location"] == f"{base}/{first.id}"
    assert admin.post(f"{base}/{first.id}/withdraw", {}).headers["location"] == base
    assert "Nothing to review" in admin.get(base).text
    states = session.scalars(select(Comparison.state).order_by(Comparison.id).execution_options(populate_existing=True))
    assert states.all() == ["withdrawn", "adjudicated", "open"]


def test_a_case_shows_everything_and_reviewers_are_not_blind(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    row = split(session, project, 3, -1, texts=("First *text*", " "))
    model = factories.model(session, project, name="policy-7")
    session.get_one(factories.Completion, row.completion_a_id).model_version_id = model.id
    session.get_one(factories.Completion, row.completion_b_id).source = "elsewhere.jsonl"
    session.commit()
    shown = sign_in("admin").get(f"/projects/{project.slug}/review/{row.id}").text
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown))
    for words in ("policy-7", "elsewhere.jsonl", "B is much better", "A is slightly better", "because 3", "because -1"):
        assert words in text
    assert "<em>text</em>" in shown
    assert "This response is empty." in shown
    assert "5 s" in text


def test_a_late_verdict_names_the_first_and_roles_are_kept(
    session: Session, project: Project, reviewer: User, sign_in: Callable[..., Any]
) -> None:
    row = split(session, project, 1, -1)
    service.adjudicate(session, project, reviewer, row.id, verdict=1, note="Shorter.")
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/review"
    late = admin.post(f"{base}/{row.id}/verdict", {"verdict": "-1"})
    assert late.status_code == 409
    assert "Ada already gave the verdict" in late.text
    shown = admin.get(f"{base}/{row.id}").text
    assert "decided by Ada" in shown
    assert 'name="verdict"' not in shown
    assert admin.post(f"{base}/{row.id}/verdict", {"verdict": "9"}).status_code == 422
    assert admin.get(f"{base}/999999").status_code == 404
    for role in ("labeler", "operator"):
        client = sign_in(role)
        assert client.get(base).status_code == 403
        assert client.post(f"{base}/{row.id}/withdraw", {}).status_code == 403
