"""A reviewer's decisions; each is applied only once."""

import threading
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.errors import Conflict, InvalidInput, NotFound
from app.labelers import fitting
from app.labeling import answers, assigning, settling
from app.labeling.forms import LabelForm
from app.models import (
    Adjudication,
    AuditEvent,
    Comparison,
    LabelerGroup,
    LabelerGroupMember,
    Lease,
    Project,
    Ranking,
    User,
)
from app.models.labeler import ProjectLabeler
from app.review import queries, service, views
from tests import factories
from tests.review.cases import conflicting, judged


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


@pytest.fixture
def reviewer(session: Session) -> User:
    return factories.user(session, "admin", name="Ada")


def event(session: Session) -> AuditEvent:
    return session.scalars(select(AuditEvent)).one()


def settle(session: Session, row: Comparison) -> None:
    settling.settle(session, [row.id])
    session.refresh(row)


def saw(session: Session, row: Comparison) -> str:
    """Return what a page of the comparison, opened now, would send along."""
    return service.as_seen(session, row)


# ---- a verdict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["in_review", "settled"])
def test_a_verdict_settles_the_comparison(session: Session, project: Project, reviewer: User, state: str) -> None:
    row = judged(session, project, 2, -2 if state == "in_review" else 1, flagged=False)
    assert row.state == state
    service.adjudicate(session, project, reviewer, row.id, verdict=-3, note="A cites the source.")
    assert (row.state, row.consensus) == ("adjudicated", -3.0)
    assert row.settled_at is not None
    stored = session.scalars(select(Adjudication)).one()
    assert (stored.reviewer_id, stored.verdict, stored.note) == (reviewer.id, -3, "A cites the source.")
    told = event(session)
    assert (told.action, told.actor_id, told.project_id) == ("review.adjudicated", reviewer.id, project.id)
    assert told.details["verdict"] == -3
    assert not any(service.waiting(session, project).values())


def test_a_verdict_stays_on_the_rubrics_scale(session: Session, project: Project, reviewer: User) -> None:
    factories.rubric(session, project, strengths=1)
    row = judged(session, project, 1, -1)
    with pytest.raises(InvalidInput, match="outside the rubric's scale"):
        service.adjudicate(session, project, reviewer, row.id, verdict=2)
    assert [step.value for step in views.steps(1)] == [-1, 0, 1]
    assert [(step.key, step.label) for step in views.steps(4)] == [
        (1, "A is far better"),
        (2, "A is much better"),
        (3, "A is better"),
        (4, "A is slightly better"),
        (5, "Tie"),
        (6, "B is slightly better"),
        (7, "B is better"),
        (8, "B is much better"),
        (9, "B is far better"),
    ]


def test_a_verdict_can_be_taken_back(session: Session, project: Project, reviewer: User) -> None:
    row = judged(session, project, 2, -2)
    service.adjudicate(session, project, reviewer, row.id, verdict=3)
    service.request(session, project, reviewer, row.id, note="I misread B.")
    assert (row.state, row.review_reason, row.settled_at) == ("in_review", "requested", None)
    assert session.scalars(select(Adjudication)).all() == []
    service.adjudicate(session, project, reviewer, row.id, verdict=-1)
    actions = [decision.action for decision in queries.decisions(session, row.id)]
    assert actions == ["review.adjudicated", "review.requested", "review.adjudicated"]


@pytest.mark.parametrize("by", ["verdict", "withdrawal"])
def test_taken_back_the_labelers_consensus_stands_again(
    session: Session, project: Project, reviewer: User, by: str
) -> None:
    """Two of three prefer A, whatever the reviewer decided earlier: nothing conflicts with a removed verdict."""
    row = judged(session, project, -2, -1, 1, reward_p_b=0.1)
    before = (row.consensus, row.p_b, row.p_tie, row.agreement)
    assert before[0] == pytest.approx(-2 / 3, abs=1e-6)
    assert row.p_b == pytest.approx(0.375)  # majority: (1 + 1/2) / (3 + 1)
    if by == "verdict":
        service.adjudicate(session, project, reviewer, row.id, verdict=3)
        assert row.consensus == 3
        assert row.p_b == pytest.approx(0.9)  # as four labelers of one mind: (4 + 1/2) / (4 + 1)
        fitting.refit(session, project)
    else:
        service.withdraw(session, project, reviewer, row.id, note="x")
    service.request(session, project, reviewer, row.id)
    session.flush()
    session.refresh(row)
    assert (row.consensus, row.p_b, row.p_tie, row.agreement) == before
    assert service.waiting(session, project)["conflict"] == 0


def test_taken_back_where_nobody_judged_there_is_no_consensus(
    session: Session, project: Project, reviewer: User
) -> None:
    row = factories.comparison(session, project, flagged=True)
    service.adjudicate(session, project, reviewer, row.id, verdict=-3)
    service.request(session, project, reviewer, row.id)
    assert (row.consensus, row.p_b, row.p_tie, row.agreement) == (None, None, None, None)


@pytest.mark.parametrize("purpose", ["calibration", "repeat"])
def test_what_measures_labelers_is_not_decided_about(
    session: Session, project: Project, reviewer: User, purpose: str
) -> None:
    of = judged(session, project, 1)
    values = {"gold": 2} if purpose == "calibration" else {}
    row = factories.comparison(session, project, purpose=purpose, repeat_of_id=of.id, flagged=True, overlap=1, **values)
    for decide in (service.request, service.people_are_right):
        with pytest.raises(Conflict):
            decide(session, project, reviewer, row.id)
    with pytest.raises(Conflict, match="measure labelers"):
        service.adjudicate(session, project, reviewer, row.id, verdict=1)
    service.dismiss_flags(session, project, reviewer, row.id)
    service.withdraw(session, project, reviewer, row.id, note="Leaks a name.")
    with pytest.raises(Conflict, match="measure labelers"):
        service.request(session, project, reviewer, row.id)
    assert (row.state, row.flagged) == ("withdrawn", False)


# ---- more labelers ---------------------------------------------------------------------------------------------------


def test_more_labelers_and_then_it_settles_anew(session: Session, project: Project, reviewer: User) -> None:
    row = judged(session, project, 2, -2)
    service.ask_more(session, project, reviewer, row.id, more=2)
    assert (row.state, row.overlap, row.overlap_max) == ("open", 4, None)
    for _ in range(2):
        factories.judgment(session, row, preference=2)
    settle(session, row)
    assert (row.state, row.agreement) == ("in_review", 0.5)  # three to one: 3 of 6 pairs
    service.ask_more(session, project, reviewer, row.id, more=1)
    factories.judgment(session, row, preference=3)
    settle(session, row)
    assert (row.state, row.agreement) == ("settled", 0.6)  # four to one: 6 of 10


def test_what_was_asked_for_again_comes_first(session: Session, project: Project, reviewer: User) -> None:
    row = judged(session, project, 2, -2)
    service.ask_more(session, project, reviewer, row.id, more=1)
    labeler = factories.user(session)
    before = factories.comparison(session, project)
    factories.judgment(session, before, preference=1, labeler_id=labeler.id)  # the labeler is past the asked one
    factories.comparison(session, project)
    assert assigning.next_task(session, project, labeler) is not None
    assert session.scalars(select(Lease.comparison_id).where(Lease.labeler_id == labeler.id)).first() == row.id


def test_those_who_could_not_judge_are_not_counted_against_new_ones(
    session: Session, project: Project, reviewer: User
) -> None:
    row = factories.comparison(session, project, overlap=4, grown=2, state="in_review", review_reason="unjudgeable")
    for preference in (1, None, None, None):
        factories.judgment(session, row, preference=preference)
    service.ask_more(session, project, reviewer, row.id, more=1)
    assert (row.overlap, row.grown) == (5, 3)
    factories.judgment(session, row, preference=1)
    settle(session, row)
    assert row.state == "settled"


def test_a_group_or_a_person_can_be_asked(session: Session, project: Project, reviewer: User) -> None:
    judge, expert, other = (factories.user(session, name=name) for name in ("Judge", "Expert", "Other"))
    experts = LabelerGroup(project_id=project.id, name="Experts")
    session.add(experts)
    session.flush()
    for person in (judge, expert):
        session.add(LabelerGroupMember(group_id=experts.id, labeler_id=person.id))
    row = factories.comparison(session, project, overlap=2)
    factories.judgment(session, row, preference=1, labeler_id=judge.id)
    factories.judgment(session, row, preference=-1)
    settle(session, row)

    assert [(group.name, group.people) for group in queries.groups_to_ask(session, row)] == [("Experts", 1)]
    with pytest.raises(InvalidInput, match="Only 1 of Experts can still be asked, not 2"):
        service.ask_more(session, project, reviewer, row.id, more=2, group_id=experts.id)
    with pytest.raises(InvalidInput, match="cannot be asked"):
        service.ask_more(session, project, reviewer, row.id, more=1, labeler_id=judge.id)
    with pytest.raises(InvalidInput, match="Other alone cannot give 2"):
        service.ask_more(session, project, reviewer, row.id, more=2, labeler_id=other.id)

    service.ask_more(session, project, reviewer, row.id, more=1, group_id=experts.id)
    assert (row.group_id, row.labeler_id) == (experts.id, None)
    assert views.decision(queries.decisions(session, row.id)[-1], 3) == "asked 1 more labeler (Experts)"
    assert assigning.next_task(session, project, other) is None
    factories.judgment(session, row, preference=1, labeler_id=expert.id)
    settle(session, row)
    service.ask_more(session, project, reviewer, row.id, more=1, labeler_id=other.id)
    assert (row.group_id, row.labeler_id) == (None, other.id)


def test_only_those_who_may_label_here_can_be_asked(session: Session, project: Project) -> None:
    row = judged(session, project, 1, -1)
    judges = set(session.scalars(select(User.id)))
    factories.user(session, name="Gone", is_active=False)
    factories.user(session, "operator", name="Operator")
    paused, fresh = factories.user(session, name="Paused"), factories.user(session, name="Fresh")
    session.add(ProjectLabeler(project_id=project.id, labeler_id=paused.id, state="paused"))
    session.flush()
    assert [person.id for person in queries.people_to_ask(session, row)] == [fresh.id]
    assert fresh.id not in judges


def test_a_pair_of_a_ranking_is_asked_about_alone(session: Session, project: Project, reviewer: User) -> None:
    ranking = Ranking(project_id=project.id, prompt_id=factories.prompt(session, project).id, size=3)
    session.add(ranking)
    session.flush()
    row = judged(session, project, 1, -1, ranking_id=ranking.id, offered=False)
    if row.state == "open":  # settled with its ranking, which is not complete here
        row.state = "in_review"
    service.ask_more(session, project, reviewer, row.id, more=1)
    assert (row.ranking_id, row.offered) == (None, True)
    assert assigning.next_task(session, project, factories.user(session)) is not None


# ---- withdrawing, flags, conflicts -----------------------------------------------------------------------------------


def test_withdrawing_needs_a_reason_and_can_be_reconsidered(session: Session, project: Project, reviewer: User) -> None:
    row = judged(session, project, 2, -2, flagged=True)
    with pytest.raises(InvalidInput, match="needs a reason"):
        service.withdraw(session, project, reviewer, row.id, note="")
    service.withdraw(session, project, reviewer, row.id, note="Both leak a name.")
    assert row.state == "withdrawn"
    assert (event(session).action, event(session).details["note"]) == ("review.withdrawn", "Both leak a name.")
    assert not any(service.waiting(session, project).values())
    service.request(session, project, reviewer, row.id)
    assert (row.state, row.review_reason) == ("in_review", "requested")


def test_dismissed_flags_come_back_with_a_new_flag_only(session: Session, project: Project, reviewer: User) -> None:
    row = judged(session, project, 1, 1)
    row.flagged = True
    service.dismiss_flags(session, project, reviewer, row.id, note="A quotation.")
    assert (row.flagged, row.state) == (False, "settled")
    with pytest.raises(Conflict, match="No flag"):
        service.dismiss_flags(session, project, reviewer, row.id)


def test_only_a_new_flag_brings_back_what_was_dismissed(session: Session, project: Project, reviewer: User) -> None:
    flags = [{"name": name, "label": name} for name in ("harmful", "broken")]
    factories.rubric(session, project, flags=flags)
    row = factories.comparison(session, project, overlap=5)
    first, second = factories.user(session), factories.user(session)

    def answer(labeler: User, *flags: str) -> None:
        task = assigning.next_task(session, project, labeler)
        assert task is not None
        form = LabelForm(preference=1, flags=list(flags), idempotency_key=uuid4(), rubric_id=row.rubric_id)
        answers.submit(session, project, task.lease_id, labeler, form)
        session.refresh(row)

    answer(first, "harmful")
    assert row.flagged
    service.dismiss_flags(session, project, reviewer, row.id)
    answer(second)
    answers.undo(session, project, second)
    session.refresh(row)
    assert not row.flagged
    answer(second, "broken")
    assert row.flagged
    answers.undo(session, project, second)  # the first one's flag is still there
    session.refresh(row)
    assert row.flagged


def test_a_comparison_in_review_for_its_flags_alone_is_settled_by_dismissing_them(
    session: Session, project: Project, reviewer: User
) -> None:
    row = judged(session, project, 1, 1)
    row.state, row.review_reason, row.flagged, row.settled_at = "in_review", "flagged", True, None
    session.flush()
    assert service.waiting(session, project) == {"disagreement": 0, "conflict": 0, "flagged": 1, "requested": 0}
    service.dismiss_flags(session, project, reviewer, row.id)
    assert (row.state, row.review_reason) == ("settled", None)
    assert row.settled_at is not None
    split = judged(session, project, 1, -1)
    split.flagged = True
    service.dismiss_flags(session, project, reviewer, split.id)
    assert split.state == "in_review"


def test_people_found_right_stay_right_until_others_are_asked(
    session: Session, project: Project, reviewer: User
) -> None:
    row = conflicting(session, project, 0.95)
    assert service.waiting(session, project)["conflict"] == 1
    service.people_are_right(session, project, reviewer, row.id)
    assert service.waiting(session, project)["conflict"] == 0
    row.reward_p_b = 0.99  # the next reward model
    session.flush()
    assert service.waiting(session, project)["conflict"] == 0
    service.ask_more(session, project, reviewer, row.id, more=1)
    factories.judgment(session, row, preference=-1)
    settle(session, row)
    assert service.waiting(session, project)["conflict"] == 1


# ---- two reviewers ---------------------------------------------------------------------------------------------------


def test_the_second_of_two_reviewers_hears_who_was_first(
    session: Session, engine: Engine, project: Project, reviewer: User
) -> None:
    row = judged(session, project, 2, -2)
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
        "The page shows its present state. “Later” goes to the next comparison."
    ]
    assert session.scalars(select(Adjudication.verdict)).all() == [-1]


def test_a_page_from_before_decides_nothing(session: Session, project: Project, reviewer: User) -> None:
    """Also if the comparison is in review again: the reviewer has not read the newer judgments."""
    row = judged(session, project, 2, -2)
    before = saw(session, row)
    service.ask_more(session, project, reviewer, row.id, more=1, seen=before)
    factories.judgment(session, row, preference=0)
    settle(session, row)
    assert row.state == "in_review"
    bea = factories.user(session, "admin", name="Bea")
    decide: list[Any] = [service.withdraw, service.people_are_right]
    for action in decide:
        with pytest.raises(Conflict, match="Ada already asked more labelers"):
            action(session, project, bea, row.id, note="x", seen=before)
    with pytest.raises(Conflict, match="Ada already asked more labelers"):
        service.adjudicate(session, project, bea, row.id, verdict=0, seen=before)
    service.adjudicate(session, project, bea, row.id, verdict=0, seen=saw(session, row))


def test_a_flag_set_since_the_page_was_opened_is_not_dismissed_unseen(
    session: Session, project: Project, reviewer: User
) -> None:
    row = factories.comparison(session, project, overlap=3, flagged=True)
    factories.judgment(session, row, preference=1, flags=["harmful"])
    session.refresh(row)
    before = saw(session, row)
    factories.judgment(session, row, preference=1, flags=["personal data"])
    with pytest.raises(Conflict, match="judged or changed after"):
        service.dismiss_flags(session, project, reviewer, row.id, seen=before)
    session.refresh(row)
    assert row.flagged
    service.dismiss_flags(session, project, reviewer, row.id, seen=saw(session, row))


def test_who_did_something_else_with_it_is_named_too(session: Session, project: Project, reviewer: User) -> None:
    withdrawn, right = judged(session, project, 2, -2), conflicting(session, project, 0.9)
    before = saw(session, right)
    service.withdraw(session, project, reviewer, withdrawn.id, note="x")
    service.people_are_right(session, project, reviewer, right.id)
    with pytest.raises(Conflict, match="Ada already withdrew"):
        service.adjudicate(session, project, reviewer, withdrawn.id, verdict=0)
    with pytest.raises(Conflict, match="Ada already found the labelers of this comparison right"):
        service.adjudicate(session, project, reviewer, right.id, verdict=0, seen=before)
    never = judged(session, project, 1, 1)
    never.state = "adjudicated"
    session.flush()
    with pytest.raises(Conflict, match="judged or changed after"):
        service.adjudicate(session, project, reviewer, never.id, verdict=0)
    with pytest.raises(NotFound):
        service.adjudicate(session, factories.project(session), reviewer, right.id, verdict=0)
