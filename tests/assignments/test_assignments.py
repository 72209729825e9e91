"""Keeping comparisons for people and groups, freeing them, and making them urgent; what never gets stuck by it."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.assignments import service
from app.assignments.forms import AssignForm
from app.errors import InvalidInput, NotFound
from app.labeling import assigning
from app.models import AuditEvent, Comparison, LabelerGroup, LabelerGroupMember, Project, ProjectLabeler, User
from tests import factories
from tests.labeling.desk import judge, rank, ranking, take

SignIn = Callable[..., Any]


@pytest.fixture
def admin(session: Session) -> User:
    return factories.user(session, "admin")


def assign(session: Session, project: Project, admin: User, **values: Any) -> int:
    changed = service.assign(session, project, admin, AssignForm.model_validate(values))
    session.expire_all()
    return changed


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
        (5, None),  # four have judged: never less than would let it be judged once more
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
    project, holder, labeler = factories.project(session, overlap=3), factories.user(session), factories.user(session)
    pairs = ranking(session, project)
    rank(session, project, {"one": 1, "two": 2, "three": 3})
    take(session, project, holder)  # on somebody's desk meanwhile
    assert assign(session, project, admin, owner=f"labeler:{labeler.id}", priority="4") == 1
    for pair in pairs:
        session.refresh(pair)
    assert {(pair.overlap, pair.labeler_id, pair.priority) for pair in pairs} == {(3, labeler.id, 4)}
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
        ({}, InvalidInput, "Nothing was chosen"),
        ({"priority": "1", "slice": "domain"}, InvalidInput, "slice has no value"),
        ({"priority": "1", "ids": "12, twelve"}, InvalidInput, "“twelve” is no number"),
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
    with pytest.raises(InvalidInput, match="no members"):
        assign(session, project, admin, owner=group(session, project))


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
    assert "How many at most" in refused.text
    assert 'value="typed"' in refused.text
    for role in ("labeler", "operator"):
        assert sign_in(role).get("/projects/p/assignment").status_code == 403
        assert sign_in(role).post("/projects/p/assignment", {"priority": "1"}).status_code == 403
