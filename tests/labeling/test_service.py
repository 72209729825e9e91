"""The queue's rules, on real PostgreSQL."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound
from app.labeling import answers, assigning, leases, outlook
from app.models import Comparison, Judgment, Lease, Rubric
from tests import factories
from tests.labeling.desk import answer, counts, end_overdue, judge, run_out, take

# --- handing out -----------------------------------------------------------------------------------------------------


def test_most_urgent_first_then_oldest(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    first, second = factories.comparison(session, project), factories.comparison(session, project)
    urgent = factories.comparison(session, project, priority=5)
    given = []
    for _ in range(3):
        task = take(session, project, labeler)
        given.append(task.position.comparison_id)
        judge(session, project, labeler, task)
    assert given == [urgent.id, first.id, second.id]
    assert assigning.next_task(session, project, labeler) is None


def test_something_more_urgent_comes_before_what_follows_the_last_one(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    for _ in range(2):
        factories.comparison(session, project)
    judge(session, project, labeler, take(session, project, labeler))
    urgent = factories.comparison(session, project, priority=1)
    assert take(session, project, labeler).position.comparison_id == urgent.id


def test_what_came_back_behind_the_labeler_is_found_again(session: Session) -> None:
    project = factories.project(session, overlap=1)
    labeler, other = factories.user(session), factories.user(session)
    early, late = factories.comparison(session, project), factories.comparison(session, project)
    held = take(session, project, other)
    assert held.position.comparison_id == early.id
    task = take(session, project, labeler)
    assert task.position.comparison_id == late.id
    judge(session, project, labeler, task)
    leases.release(session, project, held.lease_id, other)
    assert take(session, project, labeler).position.comparison_id == early.id


def test_a_second_look_gives_the_same_card_and_renews_the_lease(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    session.execute(update(Lease).where(Lease.id == task.lease_id).values(expires_at=soon))
    again = take(session, project, labeler)
    assert (again.lease_id, again.responses) == (task.lease_id, task.responses)
    assert session.scalar(select(func.count()).select_from(Lease)) == 1
    expires = session.scalars(select(Lease.expires_at).where(Lease.id == task.lease_id)).one()
    assert expires > soon + timedelta(minutes=10)


def test_nobody_gets_what_they_judged_even_if_it_was_superseded(session: Session) -> None:
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    live = factories.comparison(session, project)
    factories.judgment(session, live, preference=1, labeler_id=labeler.id)
    withdrawn = factories.comparison(session, project)
    factories.judgment(session, withdrawn, preference=1, labeler_id=labeler.id)
    session.execute(
        text("UPDATE judgment SET superseded_at = now(), superseded_for = 'relabeled' WHERE comparison_id = :c"),
        {"c": withdrawn.id},
    )
    assert assigning.next_task(session, project, labeler) is None
    assert take(session, project, factories.user(session)).position.comparison_id == live.id


def test_overlap_bounds_how_many_hold_a_comparison(session: Session) -> None:
    project = factories.project(session, overlap=2)
    factories.comparison(session, project)
    tasks = [assigning.next_task(session, project, factories.user(session)) for _ in range(3)]
    assert [task is None for task in tasks] == [False, False, True]


def test_an_abandoned_lease_returns_to_the_queue(session: Session) -> None:
    project = factories.project(session, overlap=1)
    comparison = factories.comparison(session, project)
    gone, next_one = factories.user(session), factories.user(session)
    left_behind = take(session, project, gone)
    assert assigning.next_task(session, project, next_one) is None
    run_out(session, left_behind.lease_id)
    assert take(session, project, next_one).position.comparison_id == comparison.id
    assert session.scalar(select(Lease.state).where(Lease.id == left_behind.lease_id)) == "expired"
    assert counts(session, comparison.id) == (0, 1)


def test_both_sides_come_up_and_texts_follow_them(session: Session) -> None:
    project = factories.project(session, overlap=1)
    for _ in range(40):
        factories.comparison(session, project, texts=("canonical a", "canonical b"))
    labeler, seen = factories.user(session), set()
    for _ in range(40):
        task = take(session, project, labeler)
        judgment = judge(session, project, labeler, task, -2)  # the first one shown is better
        assert (task.responses[0] == "canonical b") is judgment.swapped
        assert judgment.preference == (2 if judgment.swapped else -2)
        seen.add(judgment.swapped)
    assert seen == {True, False}  # by chance alone this fails once in 2^39 times


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_same_answer_twice_is_one_judgment(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    comparison = factories.comparison(session, project)
    task = take(session, project, labeler)
    form = answer(task, 2, rationale="because")
    first = answers.submit(session, project, task.lease_id, labeler, form)
    second = answers.submit(session, project, task.lease_id, labeler, form)
    assert first.id == second.id
    assert counts(session, comparison.id) == (1, 0)


def test_a_second_tab_cannot_answer_again(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    comparison = factories.comparison(session, project)
    task = take(session, project, labeler)
    judge(session, project, labeler, task, 2)
    with pytest.raises(Conflict, match="judged this comparison already"):
        judge(session, project, labeler, task, -2)
    assert counts(session, comparison.id) == (1, 0)


def test_the_same_form_with_another_answer_is_not_taken_for_a_repetition(session: Session) -> None:
    """The card came back through the browser's history, and the labeler changed their mind."""
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    form = answer(task, 2, rationale="because")
    first = answers.submit(session, project, task.lease_id, labeler, form)
    for changed in ({"preference": -2}, {"rationale": "no"}, {"preference": None}):
        with pytest.raises(Conflict, match="judged this comparison already"):
            answers.submit(session, project, task.lease_id, labeler, form.model_copy(update=changed))
    assert session.scalars(select(Judgment.id)).all() == [first.id]


def test_a_key_used_for_another_task_is_refused(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    for _ in range(2):
        factories.comparison(session, project)
    form = answer(task := take(session, project, labeler))
    answers.submit(session, project, task.lease_id, labeler, form)
    other = take(session, project, labeler)
    with pytest.raises(Conflict):
        answers.submit(session, project, other.lease_id, labeler, form)


def test_an_expired_lease_is_honoured_while_there_is_room(session: Session) -> None:
    project, labeler, other = factories.project(session, overlap=2), factories.user(session), factories.user(session)
    comparison = factories.comparison(session, project)
    task = take(session, project, labeler)
    run_out(session, task.lease_id)
    take(session, project, other)  # expires it and takes the other place
    assert counts(session, comparison.id) == (0, 1)
    judgment = judge(session, project, labeler, task, 3)
    swapped = session.scalar(select(Lease.swapped).where(Lease.id == task.lease_id))
    assert (judgment.swapped, judgment.preference) == (swapped, -3 if swapped else 3)
    assert counts(session, comparison.id) == (1, 1)


def test_an_expired_lease_whose_place_was_taken_is_gone(session: Session) -> None:
    project, labeler, other = factories.project(session, overlap=1), factories.user(session), factories.user(session)
    comparison = factories.comparison(session, project)
    task = take(session, project, labeler)
    run_out(session, task.lease_id)
    taken = take(session, project, other)
    with pytest.raises(Gone, match="ran out"):
        judge(session, project, labeler, task)
    judge(session, project, other, taken)
    with pytest.raises(Gone):
        judge(session, project, labeler, task)
    assert counts(session, comparison.id) == (1, 0)


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("state", ["expired", "released"])
def test_who_comes_back_gets_the_same_card_with_its_sides(session: Session, swapped: bool, state: str) -> None:
    """A draft is stored by its lease, and a tab that stayed open shows the sides as they were."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    comparison = factories.comparison(session, project)
    old = take(session, project, labeler)
    run_out(session, old.lease_id)
    session.execute(text("UPDATE lease SET swapped = :swapped, state = :state"), {"swapped": swapped, "state": state})
    session.expire_all()
    assert counts(session, comparison.id) == (0, 0)
    new = take(session, project, labeler)
    assert new.lease_id == old.lease_id
    assert counts(session, comparison.id) == (0, 1)
    judgment = judge(session, project, labeler, old, 1)
    assert (judgment.swapped, judgment.preference) == (swapped, -1 if swapped else 1)
    assert (judgment.duration_ms or 0) < 60_000  # since it was given out again, not since an hour ago
    assert counts(session, comparison.id) == (1, 0)


def test_who_comes_back_judges_by_the_newest_rubric_where_nobody_has_begun(session: Session) -> None:
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    untouched, begun = factories.comparison(session, project), factories.comparison(session, project)
    first = take(session, project, labeler)
    second = take(session, project, labeler, beside=first.lease_id)
    factories.judgment(session, begun, preference=1)
    session.execute(text("UPDATE lease SET state = 'expired'"))
    newer = factories.rubric(session, project, version=2)
    session.expire_all()
    again = take(session, project, labeler)
    assert (again.lease_id, again.position.comparison_id, again.rubric.id) == (first.lease_id, untouched.id, newer.id)
    other = take(session, project, labeler, beside=first.lease_id)
    assert (other.lease_id, other.rubric.id) == (second.lease_id, begun.rubric_id)


def test_unknown_and_foreign_leases(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    with pytest.raises(NotFound):
        answers.submit(session, project, uuid4(), labeler, answer(task))
    with pytest.raises(NotFound):
        answers.submit(session, factories.project(session), task.lease_id, labeler, answer(task))
    with pytest.raises(Forbidden):
        answers.submit(session, project, task.lease_id, factories.user(session), answer(task))
    with pytest.raises(Forbidden):
        leases.release(session, project, task.lease_id, factories.user(session))


def test_a_stale_rubric_version_is_refused_and_the_comparison_comes_again(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    comparison = factories.comparison(session, project)
    task = take(session, project, labeler)
    run_out(session, task.lease_id)
    end_overdue(session)
    newer = factories.rubric(session, project, version=2)
    session.execute(update(Comparison).values(rubric_id=newer.id))
    with pytest.raises(Conflict, match="new version of the rubric"):
        judge(session, project, labeler, task)
    factories.comparison(session, project, priority=9)
    swapped = session.scalar(select(Lease.swapped).where(Lease.id == task.lease_id))
    again = take(session, project, labeler, again=task.lease_id)
    assert again.position.comparison_id == comparison.id
    assert again.rubric.id == newer.id
    assert again.responses == task.responses
    assert judge(session, project, labeler, again).swapped is swapped


def test_a_withdrawn_comparison_is_gone(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    session.execute(update(Comparison).values(state="withdrawn"))
    with pytest.raises(Gone, match="withdrawn"):
        judge(session, project, labeler, task)
    assert assigning.next_task(session, project, labeler) is None


@pytest.mark.parametrize(
    ("rubric", "preference", "rationale", "reason"),
    [
        ({}, None, "", "No preference"),
        ({}, 4, "", "not on the rubric's scale"),
        ({"strengths": 2}, -3, "", "not on the rubric's scale"),
        ({"allow_tie": False}, 0, "", "no tie"),
        ({"rationale_rule": "required"}, 1, "  \r\n ", "requires a reason"),
    ],
)
def test_answers_the_rubric_does_not_allow(
    session: Session, rubric: dict[str, object], preference: int | None, rationale: str, reason: str
) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.rubric(session, project, **rubric)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    with pytest.raises(InvalidInput, match=reason):
        answers.submit(session, project, task.lease_id, labeler, answer(task, preference, rationale=rationale))
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0
    assert take(session, project, labeler).lease_id == task.lease_id


def test_what_is_stored_with_a_judgment(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    form = answer(task, rationale="line one\r\nline\0 two ")
    judgment = answers.submit(session, project, task.lease_id, labeler, form)
    assert judgment.rationale == "line one\nline two"
    assert judgment.rubric_id == session.scalars(select(Rubric.id)).one()
    assert session.scalar(select(Lease.state).where(Lease.id == task.lease_id)) == "submitted"


@pytest.mark.parametrize(("measured", "stored"), [(1234, 1234), (10**12, 60_000), (None, 60_000)])
def test_the_duration_is_the_browsers_bounded_by_ours(session: Session, measured: int | None, stored: int) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    task = take(session, project, labeler)
    session.execute(text("UPDATE lease SET created_at = now() - interval '1 minute'"))
    form = answer(task, duration_ms="" if measured is None else str(measured))
    assert answers.submit(session, project, task.lease_id, labeler, form).duration_ms == stored


def test_a_skipped_task_goes_back_and_does_not_come_again_at_once(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    skipped, other = factories.comparison(session, project), factories.comparison(session, project)
    task = take(session, project, labeler)
    position = leases.release(session, project, task.lease_id, labeler)
    assert position.comparison_id == skipped.id
    assert counts(session, skipped.id) == (0, 0)
    following = take(session, project, labeler, skipped=position)
    assert following.position.comparison_id == other.id
    # The second half of a double click gives nothing more back.
    leases.release(session, project, task.lease_id, labeler)
    assert take(session, project, labeler, skipped=position).lease_id == following.lease_id
    judge(session, project, labeler, following)
    assert assigning.next_task(session, project, labeler, skipped=position) is None
    assert outlook.idle(session, project, labeler, position).reason == "skipped"
    assert take(session, project, labeler).position.comparison_id == skipped.id
