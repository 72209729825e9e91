"""What an answer may say under its rubric, taking it back, and changing it; on real PostgreSQL."""

from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.judging import DEFAULT_ASPECTS, DEFAULT_FLAGS
from app.labeling import answers, assigning, history
from app.labeling.forms import LabelForm, SkipForm
from app.labeling.queries import Task
from app.models import (
    Comparison,
    Judgment,
    Lease,
    Project,
    ProjectLabeler,
    Ranking,
    Snapshot,
    SnapshotComparison,
    User,
)
from tests import factories
from tests.browser.test_labeling_ranking import ranking
from tests.labeling.desk import answer, counts, judge, run_out, take

ASPECTS = [aspect.model_dump() for aspect in DEFAULT_ASPECTS]
FLAGS = [flag.model_dump() for flag in DEFAULT_FLAGS]


def rich(session: Session, n: int = 1, overlap: int = 2, **rubric: object) -> tuple[Project, User]:
    project = factories.project(session, overlap=overlap)
    factories.rubric(session, project, **({"aspects": ASPECTS, "flags": FLAGS} | rubric))
    for _ in range(n):
        factories.comparison(session, project)
    return project, factories.user(session)


def submit(session: Session, project: Project, labeler: User, task: Task, **values: object) -> Judgment:
    return answers.submit(session, project, task.lease_id, labeler, answer(task, **values))  # type: ignore[arg-type]


def swap(session: Session, task: Task, swapped: bool) -> None:
    session.execute(update(Lease).where(Lease.id == task.lease_id).values(swapped=swapped))
    session.expire_all()


# --- within the rubric -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
def test_sides_are_stored_in_canonical_order(session: Session, swapped: bool) -> None:
    project, labeler = rich(session)
    task = take(session, project, labeler)
    swap(session, task, swapped)
    said = {"aspects": {"factuality": -1, "style": 0}, "flags": ["broken", "harmful"]}
    judgment = submit(session, project, labeler, task, preference=2, **said)
    sign = -1 if swapped else 1
    assert judgment.preference == 2 * sign
    assert judgment.aspects == {"factuality": -1 * sign, "style": 0}
    assert judgment.flags == ["harmful", "broken"]  # in the rubric's order
    assert session.get_one(Comparison, judgment.comparison_id).flagged


def test_four_strengths(session: Session) -> None:
    project, labeler = rich(session, strengths=4)
    task = take(session, project, labeler)
    swap(session, task, False)
    assert submit(session, project, labeler, task, preference=-4).preference == -4


def test_both_bad_is_a_tie_even_where_there_is_none(session: Session) -> None:
    project, labeler = rich(session, allow_tie=False)
    judgment = submit(session, project, labeler, take(session, project, labeler), preference="both_bad")
    assert (judgment.preference, judgment.both_bad) == (0, True)


def test_cannot_judge_has_no_preference(session: Session) -> None:
    project, labeler = rich(session)
    judgment = submit(session, project, labeler, take(session, project, labeler), preference="cannot_judge")
    assert (judgment.preference, judgment.both_bad) == (None, False)
    assert counts(session, judgment.comparison_id) == (1, 0)


@pytest.mark.parametrize(
    ("rubric", "said", "reason"),
    [
        (
            {"strengths": 2},
            {"preference": 3},
            "The preference 3 is not on the rubric's scale. Choose one of the steps: -2",
        ),
        ({"strengths": 4}, {"preference": 5}, "The preference 5 is not"),
        ({"allow_both_bad": False}, {"preference": "both_bad"}, "no “both bad”"),
        ({"allow_cannot_judge": False}, {"preference": "cannot_judge"}, "no “cannot judge”"),
        ({}, {"preference": 1, "aspects": {"tone": 1}}, "rates no aspect “tone”. It rates: factuality, style."),
        ({"aspects": []}, {"preference": 1, "aspects": {"style": 1}}, "rates no aspect “style”. It rates none."),
        ({}, {"preference": 1, "aspects": {"style": 2}}, "“style” was rated 2."),
        ({}, {"preference": 1, "flags": ["rude"]}, "no flag “rude”. Its flags are: harmful, personal data, broken."),
        ({}, {"preference": 1, "ranks": [1, 2]}, "nothing to rank"),
        ({"rationale_rule": "required"}, {"preference": "cannot_judge"}, "asks for a reason"),
    ],
)
def test_what_is_outside_the_rubric_is_refused_by_name(
    session: Session, rubric: dict[str, object], said: dict[str, object], reason: str
) -> None:
    project, labeler = rich(session, **rubric)
    task = take(session, project, labeler)
    with pytest.raises(InvalidInput) as refused:
        submit(session, project, labeler, task, **said)
    assert reason in str(refused.value)
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0
    assert take(session, project, labeler).lease_id == task.lease_id


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"strength": "3"}, "strength"),
        ({"preference": "2.5"}, "preference"),
        ({"preference": "much better"}, "preference"),
        ({"aspect:style": "good"}, "style"),
        ({"rationale": "x" * 10_001}, "rationale"),
        ({"ranks": ["1", "10"]}, "ranks"),
        ({"ranks": ["1"] * 10}, "ranks"),
        ({"duration_ms": "-1"}, "duration_ms"),
    ],
)
def test_a_form_no_card_has_is_refused_by_name(fields: dict[str, object], name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        LabelForm.model_validate({"idempotency_key": uuid4(), "rubric_id": 1, "preference": "1"} | fields)
    assert name in str(refused.value)


def test_the_form_as_a_page_sends_it() -> None:
    fields = {"idempotency_key": str(uuid4()), "rubric_id": "1", "csrf_token": "x", "other": "", "duration_ms": ""}
    sent = {"preference": "-2", "aspect:style": "1", "aspect:factuality": "", "flags": ["broken"], "desk": ""}
    form = LabelForm.model_validate(fields | sent)
    assert (form.preference, form.aspects, form.flags, form.desk) == (-2, {"style": 1}, ["broken"], None)


def test_reasons_to_skip() -> None:
    def words(**fields: str) -> str:
        return SkipForm.model_validate(fields).words()

    assert words(reason="too long", other="") == "too long"
    assert words(reason="other", other=" It is\r\nmine ") == "It is\nmine"
    assert words(reason="other", other="") == "other"
    assert words() == ""


# --- rankings --------------------------------------------------------------------------------------------------------


def ranked(session: Session, k: int = 4, overlap: int = 2, **rubric: object) -> tuple[Project, User, Ranking]:
    project, labeler = rich(session, 0, overlap, **rubric)
    return project, labeler, ranking(session, project, k, "Which?")


def test_a_ranking_is_one_answer_on_all_its_pairs(session: Session) -> None:
    project, labeler, _ranking = ranked(session)
    task = take(session, project, labeler)
    assert (len(task.responses), task.is_ranking) == (4, True)
    place = {text: i for i, text in enumerate(task.responses)}
    rank = {"Text 1": 2, "Text 2": 1, "Text 3": 2, "Text 4": None}
    ranks = [rank[text] for text in task.responses]
    first = submit(session, project, labeler, task, preference=None, ranks=ranks, flags=["harmful"], rationale="So.")
    rows = list(session.scalars(select(Judgment).order_by(Judgment.comparison_id)))
    # Pairs in order: 12, 13, 14, 23, 24, 34.
    assert [row.preference for row in rows] == [1, 0, -1, -1, -1, -1]
    pairs = [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]
    assert [row.swapped for row in rows] == [place[f"Text {b}"] < place[f"Text {a}"] for a, b in pairs]
    assert rows[0].id == first.id
    assert [row.rationale for row in rows] == ["So.", "", "", "", "", ""]
    assert [row.flags for row in rows] == [["harmful"], [], [], [], [], []]
    assert [row.idempotency_key is None for row in rows] == [False, True, True, True, True, True]
    assert {row.lease_id for row in rows} == {task.lease_id}
    assert [counts(session, row.comparison_id) for row in rows] == [(1, 0)] * 6
    assert assigning.progress(session, project, labeler).done == 1


@pytest.mark.parametrize(
    ("ranks", "rubric", "reason"),
    [
        ([1, 2, 3], {}, "3 ranks were given for 4 responses"),
        ([None] * 4, {}, "No response was ranked"),
        ([1, 2, 3, 5], {}, "no rank 5 among 4 responses"),
        ([1, 1, 2, 3], {"allow_tie": False}, "has no tie"),
    ],
)
def test_rankings_that_are_refused(
    session: Session, ranks: list[int | None], rubric: dict[str, object], reason: str
) -> None:
    project, labeler, _ranking = ranked(session, **rubric)
    task = take(session, project, labeler)
    with pytest.raises(InvalidInput, match=reason):
        submit(session, project, labeler, task, preference=None, ranks=ranks)
    with pytest.raises(InvalidInput, match="no preference between two"):
        submit(session, project, labeler, task, preference=1, ranks=[1, 2, 3, 4])
    with pytest.raises(InvalidInput, match="rates no aspect"):
        submit(session, project, labeler, task, preference=None, ranks=[1, 2, 3, 4], aspects={"style": 1})
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0


def test_a_ranking_sent_twice_is_one_and_changed_is_refused(session: Session) -> None:
    project, labeler, _ranking = ranked(session)
    task = take(session, project, labeler)
    form = answer(task, None, ranks=[1, 2, 3, None])
    first = answers.submit(session, project, task.lease_id, labeler, form)
    assert answers.submit(session, project, task.lease_id, labeler, form).id == first.id
    with pytest.raises(Conflict):
        answers.submit(session, project, task.lease_id, labeler, form.model_copy(update={"ranks": [1, 2, None, 3]}))
    assert session.scalar(select(func.count()).select_from(Judgment)) == 6


def test_a_pair_that_a_reviewer_decided_keeps_its_verdict(session: Session) -> None:
    project, labeler, _ranking = ranked(session)
    task = take(session, project, labeler)
    decided = session.scalars(select(Comparison.id).order_by(Comparison.id)).all()[3]
    session.execute(update(Comparison).where(Comparison.id == decided).values(state="adjudicated"))
    submit(session, project, labeler, task, preference=None, ranks=[1, 2, 3, 4])
    assert counts(session, decided) == (0, 0)
    assert session.scalar(select(func.count()).select_from(Judgment)) == 5


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


# --- taking back and changing ----------------------------------------------------------------------------------------


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


def test_what_can_no_longer_be_changed(session: Session) -> None:
    project, labeler = rich(session, overlap=2)
    other = factories.user(session)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    form = answer(history.task_of(session, judgment), 1)
    assert answers.why_final(session, judgment) == ""
    later = judge(session, project, other, take(session, project, other), 2)
    assert "settled" in answers.why_final(session, judgment)  # by another's answer
    assert answers.why_final(session, later) == ""
    with pytest.raises(Conflict, match="settled"):
        answers.edit(session, project, judgment.id, labeler, form)
    with pytest.raises(Conflict, match="settled"):
        answers.undo(session, project, labeler)

    snapshot = Snapshot(project_id=project.id, digest="x", location="x", counts={})
    session.add(snapshot)
    session.flush()
    session.add(SnapshotComparison(snapshot_id=snapshot.id, comparison_id=later.comparison_id))
    session.flush()
    assert "settled" in answers.why_final(session, later)  # a round reads it now
    session.execute(update(Comparison).values(state="adjudicated"))
    assert "A reviewer has decided" in answers.why_final(session, later)
    session.execute(update(Comparison).values(state="withdrawn"))
    assert "withdrawn" in answers.why_final(session, later)


def test_an_old_answer_that_settled_is_final(session: Session) -> None:
    _project, labeler = rich(session, overlap=1)
    comparison = session.scalars(select(Comparison)).one()
    lease = factories.lease(session, comparison, labeler_id=labeler.id, state="submitted")
    long_ago = func.now() - answers.CHANGEABLE_FOR - timedelta(seconds=1)
    given = {"labeler_id": labeler.id, "lease_id": lease.id, "created_at": long_ago}
    judgment = factories.judgment(session, comparison, preference=1, **given)
    assert answers.why_final(session, judgment) == ""  # it still waits for settling
    session.execute(update(Comparison).values(state="settled"))
    assert "settled" in answers.why_final(session, judgment)


def test_an_edit_sent_twice_is_one(session: Session) -> None:
    project, labeler = rich(session)
    judgment = judge(session, project, labeler, take(session, project, labeler), 2)
    form = answer(history.task_of(session, judgment), -1, rationale="Better so.")
    edited = answers.edit(session, project, judgment.id, labeler, form)
    assert answers.edit(session, project, judgment.id, labeler, form).id == edited.id
    with pytest.raises(Conflict, match="replaced already"):
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
    with pytest.raises(Forbidden, match="not taken"):
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
