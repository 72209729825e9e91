"""Asking decided comparisons again under a newer rubric."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.errors import Conflict, InvalidInput
from app.labeling import assigning, settling
from app.models import AuditEvent, Comparison, Judgment, LabelerGroup, LabelerGroupMember, Project, Rubric, User
from app.models.labeler import ProjectLabeler
from app.review import relabeling, service
from app.review.forms import RelabelForm
from tests import factories
from tests.review.cases import judged


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    named = {"aspects": [{"name": "style", "question": "Which?"}], "flags": [{"name": "harmful", "label": "Harmful"}]}
    factories.rubric(session, project, version=1, **named)
    return project


@pytest.fixture
def admin(session: Session) -> User:
    return factories.user(session, "admin", name="Ada")


def publish(session: Session, project: Project, version: int = 2) -> Rubric:
    return factories.rubric(session, project, version=version)


def asked_again(session: Session, old: Comparison) -> Comparison:
    found = select(Comparison).where(Comparison.relabel_of_id == old.id)
    return session.scalars(found, execution_options={"populate_existing": True}).one()


def answer(session: Session, row: Comparison, *preferences: int) -> None:
    for preference in preferences:
        factories.judgment(session, row, preference=preference)
    settling.settle(session, [row.id])
    session.refresh(row)


def test_a_comparison_is_asked_again_and_its_history_stays(session: Session, project: Project, admin: User) -> None:
    old = judged(session, project, 2, 1, purpose="heldout", reward_p_b=0.3, external_id="x7", digest="d")
    old.flagged = True
    labelers = set(session.scalars(select(Judgment.labeler_id)))
    rubric = publish(session, project)
    form = RelabelForm(rubric=rubric.id, overlap=3)
    assert relabeling.plan(session, project, form) == (1, 1, 3)
    assert relabeling.relabel(session, project, admin, form, expected=1) == 1

    session.expire_all()
    assert (old.state, old.judgment_count, old.flagged, old.rubric_id == rubric.id) == ("withdrawn", 0, False, False)
    said = session.scalars(select(Judgment)).all()
    assert {(judgment.superseded_for, judgment.comparison_id) for judgment in said} == {("relabeled", old.id)}
    new = asked_again(session, old)
    assert (new.state, new.rubric_id, new.overlap, new.judgment_count) == ("open", rubric.id, 3, 0)
    assert (new.purpose, new.prompt_id, new.reward_p_b, new.external_id) == ("heldout", old.prompt_id, 0.3, "x7")
    assert (new.completion_a_id, new.completion_b_id) == (old.completion_a_id, old.completion_b_id)
    # By its digest an import of the old judgments still finds the comparison that they are of.
    assert (old.digest, new.digest) == ("d", None)
    # The same people may answer under the new rubric.
    for labeler_id in labelers:
        factories.judgment(session, new, preference=1, labeler_id=labeler_id)

    event = session.scalars(select(AuditEvent)).one()
    assert (event.action, event.actor_id, event.details["comparisons"]) == ("comparisons.relabeled", admin.id, 1)
    with pytest.raises(Conflict, match=f"asked again as comparison {new.id}"):
        service.request(session, project, admin, old.id)
    with pytest.raises(InvalidInput, match="No comparison matches"):
        relabeling.relabel(session, project, admin, form, expected=0)


def test_what_is_chosen(session: Session, project: Project, admin: User) -> None:
    law = factories.prompt(session, project, domain="law", safety_category="privacy")
    agreed = judged(session, project, 1, 1, prompt=law)
    split = judged(session, project, 1, -1)
    alone = judged(session, project, 2)
    styled = factories.comparison(session, project, overlap=1, purpose="human_eval")
    factories.judgment(session, styled, preference=1, aspects={"style": 0}, flags=["harmful"])
    settling.settle(session, [styled.id])
    service.adjudicate(session, project, admin, agreed.id, verdict=1)
    # None of these: still open, withdrawn, or there to measure labelers.
    factories.comparison(session, project)
    service.withdraw(session, project, admin, judged(session, project, 1, 1).id, note="x")
    judged(session, project, 1, 1, purpose="repeat", repeat_of_id=alone.id).state = "settled"
    judged(session, factories.project(session), 1, 1)
    rubric = publish(session, project)
    assert judged(session, project, 1, 1, rubric_id=rubric.id).state == "settled"  # under it already

    def fitting(**conditions: Any) -> int:
        return relabeling.plan(session, project, RelabelForm(rubric=rubric.id, **conditions)).fitting

    assert fitting() == 4
    assert fitting(slice="domain=law") == 1
    assert fitting(slice="safety_category=privacy") == 1
    assert fitting(slice="purpose=human_eval") == 1
    assert fitting(aspect="style") == 1
    assert fitting(flag="harmful") == 1
    assert fitting(flag="broken") == 0
    assert fitting(agreement="60") == 1  # the split one; who judged alone agrees with nobody
    assert fitting(agreement="60", slice="domain=law") == 0
    assert split.state == "in_review"

    sampled = RelabelForm(rubric=rubric.id, sample="3", overlap=2)
    assert relabeling.plan(session, project, sampled) == (4, 3, 6)
    with pytest.raises(Conflict, match="It would be 3 comparisons now, not 4"):
        relabeling.relabel(session, project, admin, sampled, expected=4)
    assert session.scalars(select(Comparison.id).where(Comparison.relabel_of_id.is_not(None))).all() == []
    relabeling.relabel(session, project, admin, sampled, expected=3)
    assert fitting() == 1


def test_two_admins_at_once_ask_each_comparison_once(
    session: Session, engine: Engine, project: Project, admin: User
) -> None:
    old = judged(session, project, 1, -1)
    rubric = publish(session, project)
    form = RelabelForm(rubric=rubric.id)
    session.commit()
    begun, failed = threading.Event(), []

    def relabel_too() -> None:
        with make_session_factory(engine)() as other, other.begin():
            project_, admin_ = other.get_one(Project, project.id), other.get_one(User, admin.id)
            begun.set()
            try:
                relabeling.relabel(other, project_, admin_, form, expected=1)
            except Conflict as error:
                failed.append(error.message)

    relabeling.relabel(session, project, admin, form, expected=1)
    thread = threading.Thread(target=relabel_too)
    thread.start()  # waits for the comparison that the first one holds until its commit
    assert begun.wait(10)
    session.commit()
    thread.join(10)
    assert failed == ["It would be 0 comparisons now, not 1: some were decided or changed in the meantime."]
    assert asked_again(session, old).state == "open"


def test_who_reviewed_it_does_not_judge_it_again_either(session: Session, project: Project, admin: User) -> None:
    both = factories.user(session, "admin", "labeler")
    old = judged(session, project, 1)
    service.open_case(session, project, both, old.id)
    rubric = publish(session, project)
    relabeling.relabel(session, project, admin, RelabelForm(rubric=rubric.id), expected=1)
    assert assigning.next_task(session, project, both) is None
    assert assigning.next_task(session, project, factories.user(session)) is not None


def test_what_was_kept_for_somebody_stays_theirs_if_they_can_do_it(
    session: Session, project: Project, admin: User
) -> None:
    experts, ann, bob = (
        LabelerGroup(project_id=project.id, name="Experts"),
        factories.user(session),
        factories.user(session),
    )
    session.add(experts)
    session.flush()
    session.add_all(LabelerGroupMember(group_id=experts.id, labeler_id=each.id) for each in (ann, bob))
    of_group, of_ann, of_bob = judged(session, project, 1), judged(session, project, 1), judged(session, project, 1)
    of_group.group_id, of_ann.labeler_id, of_bob.labeler_id = experts.id, ann.id, bob.id
    session.add(ProjectLabeler(project_id=project.id, labeler_id=bob.id, state="paused"))
    session.flush()

    def again(version: int, overlap: int) -> list[tuple[int | None, int | None]]:
        form = RelabelForm(rubric=publish(session, project, version).id, overlap=overlap)
        relabeling.relabel(session, project, admin, form, expected=3)
        found = select(Comparison).where(Comparison.state == "open").order_by(Comparison.id)
        rows = session.scalars(found, execution_options={"populate_existing": True}).all()
        for row in rows:
            answer(session, row, *[1] * overlap)
        return [(row.group_id, row.labeler_id) for row in rows]

    assert again(2, 1) == [(experts.id, None), (None, ann.id), (None, None)]
    assert again(3, 2) == [(None, None)] * 3  # one of the two experts is paused


def test_open_repeats_of_what_is_asked_again_end(session: Session, project: Project, admin: User) -> None:
    old = judged(session, project, 1)
    repeat = factories.comparison(session, project, purpose="repeat", repeat_of_id=old.id, overlap=1)
    rubric = publish(session, project)
    relabeling.relabel(session, project, admin, RelabelForm(rubric=rubric.id), expected=1)
    session.refresh(repeat)
    assert repeat.state == "withdrawn"


def test_only_under_the_newest_version(session: Session, project: Project, admin: User) -> None:
    judged(session, project, 1, 1)
    older, newest = publish(session, project, 2), publish(session, project, 3)
    with pytest.raises(InvalidInput, match="newest rubric version only"):
        relabeling.relabel(session, project, admin, RelabelForm(rubric=older.id), expected=1)
    assert relabeling.target(session, project, None).id == newest.id


def test_agreement_before_and_after_on_exactly_those_items(session: Session, project: Project, admin: User) -> None:
    """Three items with two labelers each: before, they agreed on one (percent 1/3); after, on two of three."""
    turned = judged(session, project, 1, -1)
    kept, still_split = judged(session, project, 2, 1), judged(session, project, -1, 3)
    waiting = judged(session, project, 1, 1)
    rubric = publish(session, project)
    relabeling.relabel(session, project, admin, RelabelForm(rubric=rubric.id), expected=4)
    assert relabeling.relabeled(session, rubric) == ((4, 0), None)
    answer(session, asked_again(session, turned), -2, -1)
    answer(session, asked_again(session, kept), 1, 3)
    answer(session, asked_again(session, still_split), -1, 2)
    judged(session, project, 1, 1, rubric_id=rubric.id)  # new under the version, not asked again
    assert asked_again(session, waiting).state == "open"

    found = relabeling.relabeled(session, rubric)
    assert found.progress == (4, 3)
    assert found.outcome is not None
    before, after = found.outcome.before, found.outcome.after
    assert (before.judgments, after.judgments, before.shared, after.shared) == (6, 6, 3, 3)
    assert before.percent.value == pytest.approx(1 / 3)
    assert after.percent.value == pytest.approx(2 / 3)
    # Sides before: A twice, B four times. D_o = 4/6; D_e = 2 * 2 * 4 / (6 * 5); alpha = 1 - D_o / D_e.
    assert before.nominal_alpha.value == pytest.approx(1 - (4 / 6) / (16 / 30))
    # After: A three times, B three times, and only one item split.
    assert after.nominal_alpha.value == pytest.approx(1 - (2 / 6) / (18 / 30))
    assert found.outcome.turned == 1  # from a tie of one each to A
    assert relabeling.relabeled(session, rubric) == found  # the same intervals again


def test_the_page_counts_then_asks(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    for _ in range(3):
        judged(session, project, 1, -1)
    judged(session, project, 1, 1)
    rubric = publish(session, project)
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/review/relabel"
    assert "<strong>4</strong> comparisons" in admin.get(base).text
    shown = admin.get(f"{base}?rubric={rubric.id}&agreement=50&sample=2&overlap=3").text
    assert "<strong>2</strong> comparisons of 3 that match" in shown
    assert "<strong>6</strong> new judgments" in shown
    refused = admin.get(f"{base}?agreement=half")
    assert refused.status_code == 422
    assert "agreement" in refused.text
    form = {"rubric": rubric.id, "agreement": "50", "sample": "2", "overlap": "3"}
    assert admin.post(f"{base}?expected=3", form).status_code == 409
    done = admin.post(f"{base}?expected=2", form)
    assert done.headers["location"] == f"{base}?rubric={rubric.id}&asked=2"
    shown = admin.get(done.headers["location"]).text
    assert "2 comparisons are asked again" in shown
    assert "none is decided yet" in shown
    assert sign_in("labeler").get(base).status_code == 403
