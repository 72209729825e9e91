"""Answers that the rubric allows, taking them back, and changing them; on real PostgreSQL."""

from uuid import uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict, InvalidInput
from app.labeling import answers, outlook
from app.labeling.forms import LabelForm, SkipForm
from app.labeling.queries import Task
from app.models import (
    Comparison,
    Judgment,
    Lease,
    Project,
    Ranking,
    User,
)
from tests import factories
from tests.browser.test_labeling_ranking import ranking
from tests.labeling.desk import answer, counts, rich, submit, take


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
        ({}, {"preference": 1, "aspects": {"tone": 1}}, "has no aspect “tone”. Its aspects are: factuality, style."),
        ({"aspects": []}, {"preference": 1, "aspects": {"style": 1}}, "has no aspect “style”. It has no aspects."),
        ({}, {"preference": 1, "aspects": {"style": 2}}, "“style” was rated 2."),
        ({}, {"preference": 1, "flags": ["rude"]}, "no flag “rude”. Its flags are: harmful, personal data, broken."),
        ({}, {"preference": 1, "ranks": [1, 2]}, "nothing to rank"),
        ({"rationale_rule": "required"}, {"preference": "cannot_judge"}, "requires a reason"),
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
    assert outlook.progress(session, project, labeler).done == 1
    # What is done elsewhere is not done here, and there is nothing of it to undo.
    assert outlook.progress(session, factories.project(session), labeler).done == 0


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
    with pytest.raises(InvalidInput, match="not take a preference between two"):
        submit(session, project, labeler, task, preference=1, ranks=[1, 2, 3, 4])
    with pytest.raises(InvalidInput, match="also chose “cannot judge”"):
        submit(session, project, labeler, task, preference="cannot_judge", ranks=[1, None, None, None])
    with pytest.raises(InvalidInput, match="has no aspect"):
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
