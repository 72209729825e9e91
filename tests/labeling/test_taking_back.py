"""Taking an answer back, changing it, and the effects on its comparison; on real PostgreSQL."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.labeling import answers, assigning, history, leases, outlook, queries
from app.models import Comparison, Judgment, Lease, Project, ProjectLabeler, Snapshot, User
from app.review import service as review
from tests import factories
from tests.labeling.desk import answer, counts, end_overdue, judge, rich, run_out, submit, take
from tests.labeling.test_answers import ranked


def test_undo_puts_the_same_lease_back_before_what_was_on_the_desk(session: Session) -> None:
    project, labeler = rich(session, 3)
    task = take(session, project, labeler)
    session.execute(update(Lease).values(created_at=func.now() - timedelta(seconds=9)))
    following = take(session, project, labeler, beside=task.lease_id)
    judgment = judge(session, project, labeler, task, 2)
    ahead = take(session, project, labeler, beside=following.lease_id)
    assert answers.undo(session, project, labeler) == task.lease_id
    session.refresh(judgment)
    assert judgment.superseded_for == "undone"
    assert take(session, project, labeler).lease_id == task.lease_id
    assert take(session, project, labeler, beside=task.lease_id).lease_id == following.lease_id
    assert session.scalar(select(Lease.state).where(Lease.id == ahead.lease_id)) == "released"
    assert counts(session, task.position.comparison_id) == (0, 1)
    # A late copy of the answer that was taken back changes nothing.
    key = judgment.idempotency_key
    form = answer(task, 2, idempotency_key=key)
    assert answers.submit(session, project, task.lease_id, labeler, form).id == judgment.id
    assert counts(session, task.position.comparison_id) == (0, 1)


def test_an_answer_that_settled_opens_its_comparison_again(session: Session) -> None:
    project, labeler = rich(session, overlap=1)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    comparison = session.get_one(Comparison, judgment.comparison_id)
    assert (comparison.state, comparison.consensus) == ("settled", judgment.preference)
    task = history.task_of(session, judgment)
    edited = answers.edit(session, project, judgment.id, labeler, answer(task, -1))
    session.refresh(comparison)
    assert (comparison.state, comparison.consensus, comparison.judgment_count) == ("settled", edited.preference, 1)
    answers.undo(session, project, labeler)
    session.refresh(comparison)
    assert (comparison.state, comparison.consensus, comparison.settled_at, comparison.p_b) == ("open", None, None, None)


def test_an_answer_is_changed_and_taken_back_after_others_have_settled_it(session: Session) -> None:
    """Were it final then, what is still to be changed would tell: items never settle, and adaptive overlap asks more
    people where they disagree."""
    project, labeler = rich(session, overlap=2)
    other = factories.user(session)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    judge(session, project, other, take(session, project, other), 2)
    comparison = session.get_one(Comparison, judgment.comparison_id)
    assert comparison.state in ("settled", "in_review")
    assert answers.why_final(session, judgment) == ""
    edited = answers.edit(session, project, judgment.id, labeler, answer(history.task_of(session, judgment), 0))
    session.refresh(comparison)
    assert (comparison.state, comparison.judgment_count) == ("in_review", 2)
    assert edited.preference == 0
    answers.undo(session, project, labeler)
    session.refresh(comparison)
    assert (comparison.state, comparison.judgment_count, comparison.lease_count) == ("open", 1, 1)


def test_what_can_no_longer_be_changed(session: Session) -> None:
    project, labeler = rich(session, overlap=2)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    form = answer(history.task_of(session, judgment), 1)
    session.execute(update(Comparison).values(state="in_review", review_reason="requested"))
    assert "being reviewed" in answers.why_final(session, judgment)
    with pytest.raises(Conflict, match="being reviewed"):
        answers.edit(session, project, judgment.id, labeler, form)
    with pytest.raises(Conflict, match="being reviewed"):
        answers.undo(session, project, labeler)
    session.execute(update(Comparison).values(state="adjudicated"))
    assert "A reviewer has decided" in answers.why_final(session, judgment)
    session.execute(update(Comparison).values(state="withdrawn"))
    assert "withdrawn" in answers.why_final(session, judgment)


@pytest.mark.parametrize("why", ["an hour", "a round"])
@pytest.mark.parametrize("kind", ["open", "settled", "item"])
def test_an_answer_is_final_after_an_hour_and_when_a_round_begins(session: Session, why: str, kind: str) -> None:
    """For answers of every kind."""
    project, labeler = rich(session, overlap=1)
    comparison = session.scalars(select(Comparison)).one()
    lease = factories.lease(session, comparison, labeler_id=labeler.id, state="submitted")
    age = timedelta(minutes=59) if why == "a round" else queries.CHANGEABLE_FOR + timedelta(seconds=1)
    given = {"labeler_id": labeler.id, "lease_id": lease.id, "created_at": func.now() - age}
    judgment = factories.judgment(session, comparison, preference=1, **given)
    if kind == "settled":
        session.execute(update(Comparison).values(state="settled"))
    if kind == "item":
        session.execute(update(Comparison).values(purpose="calibration", gold=1))
    if why == "a round":
        assert answers.why_final(session, judgment) == ""
        session.add(Snapshot(project_id=factories.project(session).id, digest="x", location="x", counts={}))
        session.flush()
        assert answers.why_final(session, judgment) == ""  # another project's
        session.add(Snapshot(project_id=project.id, digest="x", location="x", counts={}))
        session.flush()
    assert answers.why_final(session, judgment) == "It is more than an hour old, or a round has started since."
    assert [row.can_change for row in history.mine(session, project, labeler, None).rows] == [False]


def test_an_edit_sent_twice_is_one(session: Session) -> None:
    project, labeler = rich(session)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    form = answer(history.task_of(session, judgment), -1, rationale="Better so.")
    edited = answers.edit(session, project, judgment.id, labeler, form)
    assert answers.edit(session, project, judgment.id, labeler, form).id == edited.id
    with pytest.raises(Conflict, match="already replaced"):
        answers.edit(session, project, judgment.id, labeler, answer(history.task_of(session, edited), 1))
    with pytest.raises(InvalidInput, match="No preference"):
        answers.edit(session, project, edited.id, labeler, answer(history.task_of(session, edited), None))
    assert counts(session, judgment.comparison_id) == (1, 0)


def test_ones_own_answers_only(session: Session) -> None:
    project, labeler = rich(session, 2)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    form = answer(history.task_of(session, judgment), 1)
    with pytest.raises(Forbidden):
        answers.edit(session, project, judgment.id, factories.user(session), form)
    with pytest.raises(NotFound):
        answers.edit(session, factories.project(session), judgment.id, labeler, form)
    with pytest.raises(Conflict, match="no answer here"):
        answers.undo(session, project, factories.user(session))
    imported = factories.judgment(session, factories.comparison(session, project), preference=1, labeler_id=labeler.id)
    with pytest.raises(NotFound):
        answers.own_judgment(session, project, imported.id, labeler)


@pytest.mark.parametrize("state", ["paused", "removed"])
def test_who_may_not_label_changes_nothing(session: Session, state: str) -> None:
    project, labeler = rich(session, 2)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    task = take(session, project, labeler)
    form = answer(history.task_of(session, judgment), 1)
    session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.id, state=state, reason="Read the rubric."))
    session.flush()
    with pytest.raises(Forbidden, match="nothing was saved"):
        judge(session, project, labeler, task)
    with pytest.raises(Forbidden):
        answers.undo(session, project, labeler)
    with pytest.raises(Forbidden):
        answers.edit(session, project, judgment.id, labeler, form)
    assert session.scalar(select(func.count()).select_from(Judgment)) == 1


def test_the_history_says_what_was_seen(session: Session) -> None:
    project, labeler = rich(session, 4)
    said = [{"preference": -3, "aspects": {"style": 1}}, {"preference": "both_bad"}, {"preference": "cannot_judge"}]
    for each in said:
        submit(session, project, labeler, take(session, project, labeler), **each)
    answers.undo(session, project, labeler)
    mine = history.mine(session, project, labeler, None)
    assert [(row.said, row.became, row.can_change) for row in mine.rows] == [
        ("Cannot judge", "undone", False),
        ("Both bad", "", True),
        ("First response much better", "", True),
    ]
    assert mine.rows[2].aspects == ["style: second"]
    assert (mine.numbers.today, mine.numbers.total, mine.older) == (2, 2, None)
    session.execute(update(Project).values(labeling={"own_figures": {"seconds": False, "agreement": False}}))
    session.expire_all()
    assert history.mine(session, session.get_one(Project, project.id), labeler, None).numbers.seconds is None


def test_a_repeated_undo_never_exceeds_the_overlap(session: Session) -> None:
    project, labeler = rich(session, overlap=1)
    other = factories.user(session)
    task = take(session, project, labeler)
    judge(session, project, labeler, task)
    answers.undo(session, project, labeler)
    assert assigning.next_task(session, project, other) is None  # its place is the labeler's again
    judge(session, project, labeler, take(session, project, labeler))
    assert counts(session, task.position.comparison_id) == (1, 0)
    assert session.execute(text("SELECT max(judgment_count + lease_count - overlap) FROM comparison")).scalar() == 0


def test_what_was_taken_back_and_left_comes_again(session: Session) -> None:
    project, labeler = rich(session, 2, overlap=1)
    task = take(session, project, labeler)
    judge(session, project, labeler, task)
    answers.undo(session, project, labeler)
    run_out(session, task.lease_id)
    assert take(session, project, labeler).position == task.position
    assert take(session, project, factories.user(session)).position != task.position


def test_what_was_changed_and_then_taken_back_comes_again(session: Session) -> None:
    project, labeler = rich(session, overlap=1)
    task = take(session, project, labeler)
    judgment = judge(session, project, labeler, task, 2)
    answers.edit(session, project, judgment.id, labeler, answer(task, -1))
    answers.undo(session, project, labeler)
    leases.release(session, project, task.lease_id, labeler)
    assert take(session, project, labeler).lease_id == task.lease_id
    # Nor is it too late for an answer from a page that was left open.
    run_out(session, task.lease_id)
    end_overdue(session)
    judge(session, project, labeler, task, 1)
    assert counts(session, task.position.comparison_id) == (1, 0)
    assert outlook.idle(session, project, labeler).reason == "finished"


def test_a_ranking_is_taken_back_and_changed_as_one(session: Session) -> None:
    project, labeler, _ranking = ranked(session, overlap=1)
    task = take(session, project, labeler)
    submit(session, project, labeler, task, preference=None, ranks=[4, 3, 2, 1], flags=["harmful"])
    assert set(session.scalars(select(Comparison.state))) >= {"settled"}
    assert answers.undo(session, project, labeler) == task.lease_id
    assert set(session.scalars(select(Comparison.state))) == {"open"}
    again = take(session, project, labeler)
    assert (again.lease_id, again.responses) == (task.lease_id, task.responses)
    draft = history.taken_back(session, again, labeler)
    assert draft
    assert (draft.ranks, draft.flags) == ([4, 3, 2, 1], ["harmful"])
    judgment = submit(session, project, labeler, again, preference=None, ranks=[1, 2, 3, 4])
    edited = answers.edit(session, project, judgment.id, labeler, answer(again, "cannot_judge"))
    live = list(session.scalars(select(Judgment).where(Judgment.superseded_at.is_(None))))
    assert [row.preference for row in live] == [None] * 6
    assert history.as_shown(session, edited).preference == "cannot_judge"
    assert sorted(session.scalars(select(Judgment.superseded_for).where(Judgment.superseded_at.is_not(None)))) == (
        ["edited"] * 6 + ["undone"] * 6
    )


@pytest.mark.parametrize("apart", [0, 1])
def test_a_ranking_stays_one_answer_where_a_reviewer_asks_more_about_one_of_its_pairs(
    session: Session, apart: int
) -> None:
    project, labeler, _ranking = ranked(session, overlap=1)
    project.review_threshold = 1
    task = take(session, project, labeler)
    judgment = submit(session, project, labeler, task, preference=None, ranks=[4, 3, 2, 1])
    pairs = session.scalars(select(Comparison).order_by(Comparison.id)).all()
    reviewer = factories.user(session, "admin")
    before = outlook.progress(session, project, labeler)
    review.ask_more(session, project, reviewer, pairs[apart].id, more=1)
    assert outlook.progress(session, project, labeler) == before
    rows = history.mine(session, project, labeler, None).rows
    assert [row.judgment.id for row in rows] == [judgment.id]
    with pytest.raises(Conflict, match="about part of it"):
        answers.undo(session, project, labeler)
    for part in session.scalars(select(Judgment)).all():
        assert answers.own_judgment(session, project, part.id, labeler).id == judgment.id
        with pytest.raises(Conflict, match="about part of it"):
            answers.edit(session, project, part.id, labeler, answer(task, None, ranks=[1, 2, 3, 4]))
    assert counts(session, pairs[apart].id) == (1, 0)


# --- what an answer had asked for ------------------------------------------------------------------------------------


NOT = "cannot_judge"


def asked(session: Session, comparison_id: int) -> tuple[str, int, int]:
    """(state, overlap, grown)"""
    session.expire_all()
    row = session.get_one(Comparison, comparison_id)
    return row.state, row.overlap, row.grown


def one_task(session: Session, **values: Any) -> tuple[Project, int]:
    project, _labeler = rich(session, 0, **values)
    return project, factories.comparison(session, project).id


def say(session: Session, project: Project, labeler: User, said: object) -> Judgment:
    """Towards B, whichever side is shown first."""
    task = take(session, project, labeler)
    swapped = session.get_one(Lease, task.lease_id).swapped
    return submit(session, project, labeler, task, preference=-said if swapped and isinstance(said, int) else said)


def test_taking_cannot_judge_back_takes_back_that_one_more_is_asked(session: Session) -> None:
    project, comparison_id = one_task(session, overlap=2)
    ann, bob = factories.user(session), factories.user(session)
    say(session, project, ann, 1)
    say(session, project, bob, NOT)
    assert asked(session, comparison_id) == ("open", 3, 1)
    answers.undo(session, project, bob)
    assert asked(session, comparison_id) == ("open", 2, 0)
    assert assigning.next_task(session, project, factories.user(session)) is None  # nobody else is needed
    say(session, project, bob, 1)
    assert asked(session, comparison_id) == ("settled", 2, 0)


def test_changing_cannot_judge_into_a_preference_settles(session: Session) -> None:
    project, comparison_id = one_task(session, overlap=2)
    ann, bob = factories.user(session), factories.user(session)
    judgment = say(session, project, bob, NOT)
    say(session, project, ann, 1)
    assert asked(session, comparison_id) == ("open", 3, 1)
    form = answer(history.task_of(session, judgment), NOT)
    judgment = answers.edit(session, project, judgment.id, bob, form)
    assert asked(session, comparison_id) == ("open", 3, 1)  # the same again asks for as much again
    towards_b = answer(history.task_of(session, judgment), -2 if judgment.swapped else 2)
    answers.edit(session, project, judgment.id, bob, towards_b)
    assert asked(session, comparison_id) == ("settled", 2, 0)


def test_a_place_that_somebody_has_taken_meanwhile_stays_theirs(session: Session) -> None:
    project, comparison_id = one_task(session, overlap=2)
    ann, bob, cleo = (factories.user(session) for _ in range(3))
    say(session, project, ann, 1)
    say(session, project, bob, NOT)
    task = take(session, project, cleo)
    answers.undo(session, project, bob)
    assert asked(session, comparison_id) == ("open", 3, 1)
    submit(session, project, cleo, task, preference=-1 if session.get_one(Lease, task.lease_id).swapped else 1)
    assert asked(session, comparison_id)[0] == "open"  # Bob has it on the desk
    say(session, project, bob, 1)
    assert asked(session, comparison_id) == ("settled", 3, 1)


def test_two_who_could_not_judge_and_one_who_thinks_again(session: Session) -> None:
    project, comparison_id = one_task(session, overlap=1)
    people = [factories.user(session) for _ in range(3)]
    for person in people:
        say(session, project, person, NOT)
    assert asked(session, comparison_id) == ("in_review", 3, 2)
    answers.undo(session, project, people[2])
    assert asked(session, comparison_id) == ("open", 3, 2)  # two still stand in for others
    say(session, project, people[2], 1)
    assert asked(session, comparison_id) == ("settled", 3, 2)


def test_a_ranking_asks_for_as_many_as_its_answers_leave_open(session: Session) -> None:
    project, ann, _ranking = ranked(session, k=3)
    bob = factories.user(session)
    submit(session, project, ann, take(session, project, ann), preference=None, ranks=[1, None, None])
    submit(session, project, bob, take(session, project, bob), preference=NOT)
    ids = list(session.scalars(select(Comparison.id).order_by(Comparison.id)))
    assert [asked(session, id_) for id_ in ids] == [("open", 3, 1)] * 3
    answers.undo(session, project, bob)
    # The pair that Ann left open does not count: she could judge the ranking.
    assert [asked(session, id_) for id_ in ids] == [("open", 2, 0)] * 3


@pytest.mark.parametrize("at_least", [1, 2])
def test_adaptive_overlap_forgets_the_doubt_that_was_taken_back(session: Session, at_least: int) -> None:
    adaptive = {"at_least": at_least, "at_most": 5, "sure": 0.9}
    project = factories.project(session, labeling={"adaptive": adaptive})
    comparison_id = factories.comparison(session, project, overlap=at_least, overlap_max=5).id
    ann, bob = factories.user(session), factories.user(session)
    say(session, project, ann, 1)
    judgment = say(session, project, bob, -1)
    assert asked(session, comparison_id) == ("open", 3, 0)
    shown = history.as_shown(session, judgment).preference
    assert isinstance(shown, int)
    # As if Bob had said so at once: two alike are sure enough.
    answers.edit(session, project, judgment.id, bob, answer(history.task_of(session, judgment), -shown))
    assert asked(session, comparison_id) == ("settled", 2, 0)
    answers.undo(session, project, bob)
    answers.undo(session, project, ann)
    assert asked(session, comparison_id)[:2] == ("open", 2)  # both have it on the desk
