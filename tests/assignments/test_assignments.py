"""Reserving comparisons for people and groups, releasing them, making them urgent, and never blocking the queue."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, text
from sqlalchemy.orm import Session

from app.assignments import queries, service
from app.assignments.forms import AssignForm
from app.comparisons import service as bulk
from app.comparisons.forms import BulkForm
from app.db import make_session_factory
from app.errors import InvalidInput, NotFound
from app.labeling import answers, assigning, leases
from app.models import AuditEvent, Comparison, LabelerGroup, LabelerGroupMember, Project, ProjectLabeler, User
from tests import factories
from tests.labeling.desk import answer, judge, rank, ranking, take
from tests.waiting import wait_for

SignIn = Callable[..., Any]


@pytest.fixture
def admin(session: Session) -> User:
    return factories.user(session, "admin")


def assign(session: Session, project: Project, admin: User, **values: Any) -> int:
    done = service.assign(session, project, admin, AssignForm.model_validate(values))
    session.expire_all()
    return done.changed


def group(session: Session, project: Project, *members: User) -> str:
    row = LabelerGroup(project_id=project.id, name="experts")
    session.add(row)
    session.flush()
    session.add_all([LabelerGroupMember(group_id=row.id, labeler_id=member.id) for member in members])
    session.flush()
    return f"group:{row.id}"


def test_a_set_is_kept_for_a_person_by_slice_purpose_and_number(session: Session, admin: User) -> None:
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    law = [
        factories.comparison(session, project, prompt=factories.prompt(session, project, domain="law"))
        for _ in range(3)
    ]
    heldout = factories.comparison(
        session, project, prompt=factories.prompt(session, project, domain="law"), purpose="heldout"
    )
    other = factories.comparison(session, project)
    owner = f"labeler:{labeler.id}"
    assert assign(session, project, admin, slice="domain", value="law", purpose="train", most="2", owner=owner) == 2
    kept = session.scalars(
        select(Comparison.id).where(Comparison.labeler_id == labeler.id).order_by(Comparison.id)
    ).all()
    assert kept == [law[0].id, law[1].id]
    assert assign(session, project, admin, ids=f"#{heldout.id}, {other.id}-{other.id + 50}", owner=owner) == 2
    assert {row.overlap for row in session.scalars(select(Comparison).where(Comparison.labeler_id == labeler.id))} == {
        1
    }
    event = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).first()
    assert event is not None
    assert (event.action, event.details["comparisons"], event.details["value"]) == ("comparisons.assigned", 2, "law")


def test_what_is_kept_for_a_person_is_done_with_their_judgment(session: Session, admin: User) -> None:
    project, labeler, first = factories.project(session, overlap=3), factories.user(session), factories.user(session)
    comparison = factories.comparison(session, project)
    judge(session, project, first, take(session, project, first))
    assert assign(session, project, admin, owner=f"labeler:{labeler.id}") == 1
    assert assigning.next_task(session, project, factories.user(session)) is None
    judge(session, project, labeler, take(session, project, labeler))
    session.refresh(comparison)
    assert (comparison.judgment_count, comparison.state == "open") == (2, False)


def test_nobody_is_given_what_they_have_judged_or_gave_up(session: Session, admin: User) -> None:
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    judged, recused, held, fresh = (factories.comparison(session, project) for _ in range(4))
    factories.judgment(session, judged, preference=1, labeler_id=labeler.id)
    factories.lease(session, recused, labeler_id=labeler.id, state="recused")
    factories.lease(session, held, labeler_id=labeler.id)
    assert assign(session, project, admin, owner=f"labeler:{labeler.id}") == 1
    assert session.scalars(select(Comparison.id).where(Comparison.labeler_id == labeler.id)).all() == [fresh.id]
    assert assign(session, project, admin, ids=str(judged.id), owner=f"labeler:{labeler.id}") == 0


def test_freed_comparisons_want_again_what_new_ones_do(session: Session, admin: User) -> None:
    rules = [{"where": "domain=law", "overlap": 4}]
    project = factories.project(session, overlap=2, labeling={"overlap": rules})
    labeler = factories.user(session)
    plain = factories.comparison(session, project)
    law = factories.comparison(session, project, prompt=factories.prompt(session, project, domain="law"))
    full = factories.comparison(session, project, overlap=6)
    for _ in range(4):
        factories.judgment(session, full, preference=1)
    assert assign(session, project, admin, owner=f"labeler:{labeler.id}") == 3
    assert assign(session, project, admin, held="kept", owner="everybody") == 3
    assert session.execute(select(Comparison.overlap, Comparison.labeler_id).order_by(Comparison.id)).all() == [
        (2, None),
        (4, None),
        (5, None),  # four have judged: at least one more judgment must be possible
    ]
    project.labeling = {"overlap": rules, "adaptive": {"at_least": 1, "at_most": 3}}
    assert assign(session, project, admin, owner="everybody") == 3
    wanted = session.execute(select(Comparison.overlap, Comparison.overlap_max).order_by(Comparison.id)).all()
    assert wanted == [(1, 3), (4, None), (5, 5)]
    assert {plain.id, law.id, full.id} == set(session.scalars(select(Comparison.id)))


def test_a_group_is_never_asked_for_more_judgments_than_it_has_members(session: Session, admin: User) -> None:
    project = factories.project(session, overlap=5)
    members = [factories.user(session) for _ in range(2)]
    comparison = factories.comparison(session, project)
    assert assign(session, project, admin, owner=group(session, project, *members)) == 1
    for member in members:
        judge(session, project, member, take(session, project, member))
    session.refresh(comparison)
    assert (comparison.state == "open", comparison.judgment_count) == (False, 2)


def test_the_pairs_of_a_ranking_go_together(session: Session, admin: User) -> None:
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    pairs = ranking(session, project)
    rank(session, project, {"one": 1, "two": 2, "three": 3})
    assert assign(session, project, admin, owner=f"labeler:{labeler.id}", priority="4") == 1
    for pair in pairs:
        session.refresh(pair)
    assert {(pair.overlap, pair.labeler_id, pair.priority) for pair in pairs} == {(2, labeler.id, 4)}
    assert take(session, project, labeler).position.comparison_id == pairs[0].id


def test_priorities_decide_who_comes_first(session: Session, admin: User) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    first, second = factories.comparison(session, project), factories.comparison(session, project)
    assert assign(session, project, admin, ids=str(second.id), priority="7") == 1
    assert take(session, project, labeler).position.comparison_id == second.id
    assert session.scalars(select(Comparison.priority).where(Comparison.id == first.id)).one() == 0


def test_calibration_items_repeats_and_what_is_closed_are_left_alone(session: Session, admin: User) -> None:
    project = factories.project(session)
    factories.comparison(session, project, purpose="calibration", gold=1)
    original = factories.comparison(session, project, state="settled")
    factories.comparison(session, project, purpose="repeat", repeat_of_id=original.id)
    assert assign(session, project, admin, priority="7") == 0


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        ({}, InvalidInput, "You chose no change"),
        ({"priority": "1", "slice": "domain"}, InvalidInput, "slice has no value"),
        ({"priority": "1", "ids": "12, twelve"}, InvalidInput, "“twelve” is neither a number"),
        ({"priority": "1", "ids": "1-99999999999"}, InvalidInput, "more than 10,000"),
        ({"owner": "labeler:999999"}, NotFound, "cannot label"),
        ({"owner": "group:999999"}, NotFound, "no such group"),
    ],
)
def test_what_is_refused(
    session: Session, admin: User, values: dict[str, str], error: type[Exception], reason: str
) -> None:
    project = factories.project(session)
    factories.comparison(session, project)
    with pytest.raises(error, match=reason):
        assign(session, project, admin, **values)


def test_nothing_is_kept_for_who_may_not_label_or_for_nobody(session: Session, admin: User) -> None:
    project, paused = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    session.add(ProjectLabeler(project_id=project.id, labeler_id=paused.id, state="paused", reason="..."))
    session.flush()
    with pytest.raises(NotFound, match="cannot label"):
        assign(session, project, admin, owner=f"labeler:{paused.id}")
    with pytest.raises(InvalidInput, match="Nobody in the group"):
        assign(session, project, admin, owner=group(session, project))


# --- what never gets stuck -------------------------------------------------------------------------------------------


def test_what_is_on_somebodys_desk_is_not_kept_for_another(session: Session, admin: User) -> None:
    """They would answer it, or give it back and leave a place that nobody may take."""
    project, labeler, holder = factories.project(session, overlap=3), factories.user(session), factories.user(session)
    held, free = factories.comparison(session, project, priority=1), factories.comparison(session, project)
    task = take(session, project, holder)
    owner = f"labeler:{labeler.id}"
    form = AssignForm.model_validate({"owner": owner})
    assert service.assign(session, project, admin, form) == (1, 1)
    assert session.scalars(select(Comparison.id).where(Comparison.labeler_id == labeler.id)).all() == [free.id]
    leases.release(session, project, task.lease_id, holder)
    assert assign(session, project, admin, ids=str(held.id), owner=owner) == 1
    judge(session, project, labeler, take(session, project, labeler))
    session.refresh(held)
    assert (held.judgment_count, held.overlap, held.state) == (1, 1, "settled")


def test_a_group_is_asked_only_for_those_of_it_who_have_not_judged(session: Session, admin: User) -> None:
    project = factories.project(session, overlap=4)
    members = [factories.user(session) for _ in range(3)]
    comparison = factories.comparison(session, project)
    judge(session, project, members[0], take(session, project, members[0]))
    factories.lease(session, comparison, labeler_id=members[1].id, state="recused")
    owner = group(session, project, *members)
    assert assign(session, project, admin, owner=owner) == 1
    judge(session, project, members[2], take(session, project, members[2]))
    session.refresh(comparison)
    assert (comparison.judgment_count, comparison.state == "open") == (2, False)
    done = factories.comparison(session, project)
    for member in members:
        factories.judgment(session, done, preference=1, labeler_id=member.id)
    assert assign(session, project, admin, owner=owner) == 0


@pytest.mark.parametrize("kept_for", ["person", "group"])
def test_nobody_waits_for_a_replacement_that_cannot_come(session: Session, admin: User, kept_for: str) -> None:
    """Somebody else is asked if one cannot judge. But all people it is reserved for have judged."""
    project = factories.project(session, overlap=2)
    members = [factories.user(session) for _ in range(2 if kept_for == "group" else 1)]
    comparison = factories.comparison(session, project)
    owner = group(session, project, *members) if kept_for == "group" else f"labeler:{members[0].id}"
    assert assign(session, project, admin, owner=owner) == 1
    for number, member in enumerate(members):
        task = take(session, project, member)
        said = "cannot_judge" if number == 0 else 1
        answers.submit(session, project, task.lease_id, member, answer(task, said))  # type: ignore[arg-type]
    session.refresh(comparison)
    assert (comparison.state, comparison.review_reason) == ("in_review", "unjudgeable")
    assert comparison.overlap == comparison.judgment_count == len(members)


def test_in_a_larger_group_somebody_else_is_asked(session: Session, admin: User) -> None:
    project = factories.project(session, overlap=2)
    members = [factories.user(session) for _ in range(3)]
    comparison = factories.comparison(session, project)
    assert assign(session, project, admin, owner=group(session, project, *members)) == 1
    for member, said in zip(members, (1, "cannot_judge", 1), strict=True):
        task = take(session, project, member)
        answers.submit(session, project, task.lease_id, member, answer(task, said))  # type: ignore[arg-type]
    session.refresh(comparison)
    assert (comparison.state == "open", comparison.judgment_count) == (False, 3)


@pytest.mark.parametrize("why", ["paused", "emptied", "inactive", "done"])
def test_what_nobody_is_left_to_answer_is_shown_and_can_be_freed(session: Session, admin: User, why: str) -> None:
    project = factories.project(session, overlap=1)
    member, holder = factories.user(session), factories.user(session)
    comparison = factories.comparison(session, project)
    owner = group(session, project, member)
    assert assign(session, project, admin, owner=owner) == 1
    assert [row.stuck for row in queries.held(session, project.id)] == [0]
    if why == "paused":
        session.add(ProjectLabeler(project_id=project.id, labeler_id=member.id, state="paused", reason="..."))
    elif why == "emptied":
        session.execute(delete(LabelerGroupMember))
    elif why == "inactive":
        member.is_active = False
    else:
        factories.lease(session, comparison, labeler_id=member.id, state="recused")
    session.flush()
    assert [(row.name, row.comparisons, row.stuck) for row in queries.held(session, project.id)] == [("experts", 1, 1)]
    assert assign(session, project, admin, held="stuck", owner="everybody") == 1
    assert take(session, project, holder).position.comparison_id == comparison.id


def test_the_page_shows_what_is_open_for_whom_and_changes_it(sign_in: SignIn, session: Session) -> None:
    project, labeler = factories.project(session, slug="p"), factories.user(session, name="Grace <b>")
    for _ in range(3):
        factories.comparison(session, project)
    session.commit()
    admin = sign_in("admin")
    page = admin.get("/projects/p/assignment").text
    assert "Everybody" in page
    assert "Grace &lt;b&gt;" in page
    sent = admin.post("/projects/p/assignment", {"most": "2", "owner": f"labeler:{labeler.id}", "priority": ""})
    assert sent.headers["location"] == "/projects/p/assignment?changed=2"
    page = admin.get(sent.headers["location"]).text
    assert "2 comparisons changed." in page
    assert (
        "1 more is on somebody’s desk and did not change"
        in admin.get("/projects/p/assignment?changed=0&on_desks=1").text
    )
    assert [row.labeler_id for row in session.scalars(select(Comparison).order_by(Comparison.id))] == [
        labeler.id,
        labeler.id,
        None,
    ]


def test_a_refused_form_comes_back_as_it_was_typed(sign_in: SignIn, session: Session) -> None:
    factories.project(session, slug="p")
    session.commit()
    admin = sign_in("admin")
    refused = admin.post("/projects/p/assignment", {"most": "none", "value": "typed", "owner": "everybody"})
    assert refused.status_code == 422
    assert "Comparisons, at most" in refused.text
    assert 'value="typed"' in refused.text
    for role in ("labeler", "operator"):
        assert sign_in(role).get("/projects/p/assignment").status_code == 403
        assert sign_in(role).post("/projects/p/assignment", {"priority": "1"}).status_code == 403


def test_assigning_waits_for_nobody_in_a_circle(session: Session, engine: Engine) -> None:
    """One admin has withdrawn a later pair of the first ranking and wants the second ranking; another assigns both.

    The one who assigns holds what is offered of both. Waiting for the later pair as well would end in a deadlock.
    """
    project = factories.project(session)
    factories.published_rubric(session, project)
    first, second = ranking(session, project), ranking(session, project)
    admin, labeler = factories.user(session, "admin"), factories.user(session)
    session.commit()
    sessions = make_session_factory(engine)

    def withdraw(own: Session, comparison: Comparison) -> int:
        form = BulkForm(ids=[comparison.id], do="withdraw", note="broken")
        return bulk.act(own, own.get_one(Project, project.id), admin, form).n

    def assign_all() -> int:
        with sessions.begin() as own:
            return assign(own, own.get_one(Project, project.id), admin, owner=f"labeler:{labeler.id}")

    def waits() -> bool:
        with engine.connect() as connection:
            return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))

    with ThreadPoolExecutor(1) as pool, sessions.begin() as own:
        assert withdraw(own, first[1]) == 1
        assigned = pool.submit(assign_all)
        wait_for(lambda: assigned.done() or waits(), "whoever assigns")
        assert withdraw(own, second[0]) == 1
        assert assigned.result(30) == 1
    session.expire_all()
    assert [row.labeler_id for row in (*first, *second)] == [None] * 3 + [labeler.id] * 3
