"""Drafts, versions, and which comparisons follow a new version."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.documents import DEFAULT_ASPECTS, DEFAULT_FLAGS, RubricContent
from app.errors import Conflict, NotFound
from app.models import AuditEvent, Comparison, Judgment, Ranking, Rubric
from app.rubrics import queries, service
from app.rubrics.retaking import Retake
from tests import factories


def content(guideline: str = "New text.", **values: object) -> RubricContent:
    return RubricContent.model_validate({"guideline": guideline} | values)


def columns(guideline: str, **values: object) -> dict[str, Any]:
    return content(guideline, **values).model_dump(mode="json")


def test_the_first_version(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    with pytest.raises(NotFound, match="no published rubric"):
        service.current(session, project)
    first = service.create_first(session, project, content("Be kind.", strengths=2, allow_tie=False), admin.id)
    assert service.current(session, project).id == first.id
    assert (first.version, first.strengths, first.allow_tie, first.published_by) == (1, 2, False, admin.id)
    assert first.aspects == [aspect.model_dump() for aspect in DEFAULT_ASPECTS]
    assert [aspect["name"] for aspect in first.aspects] == ["factuality", "style"]
    assert first.flags == [flag.model_dump() for flag in DEFAULT_FLAGS]


def test_a_draft_changes_nothing_until_it_is_published(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    first = factories.rubric(session, project)
    draft = service.save_draft(session, project, columns("Shorter.\nIs better.", strengths=1), 0, admin)
    assert (draft.version, draft.revision, draft.guideline) == (None, 1, "Shorter.\nIs better.\n")
    assert service.current(session, project).id == first.id
    published = service.publish(session, project, content("Shorter.", strengths=1), 1, admin)
    assert published.id == draft.id
    assert (published.version, published.guideline, published.strengths) == (2, "Shorter.\n", 1)
    assert service.current(session, project).id == published.id
    assert queries.draft(session, project.id) is None
    [event] = session.scalars(select(AuditEvent).where(AuditEvent.action == "rubric.published"))
    assert (event.actor_id, event.project_id) == (admin.id, project.id)
    assert event.details == {"version": 2}


def test_a_new_version_applies_to_what_nobody_has_begun(session: Session) -> None:
    project, admin = factories.project(session, overlap=3), factories.user(session, "admin")
    first = factories.rubric(session, project)
    untouched, judged, on_desk, abandoned, replaced, closed = (factories.comparison(session, project) for _ in range(6))
    elsewhere = factories.comparison(session)
    judgment = factories.judgment(session, judged, preference=1)
    factories.lease(session, on_desk)
    gone = factories.lease(session, abandoned)
    gone.state = "expired"
    factories.judgment(session, replaced, preference=1)
    session.execute(
        text("UPDATE judgment SET superseded_at = now(), superseded_for = 'undone' WHERE comparison_id = :id"),
        {"id": replaced.id},
    )
    session.execute(update(Comparison).where(Comparison.id == closed.id).values(state="withdrawn"))
    session.flush()
    assert queries.not_begun(session, project.id, 100) == 2
    assert queries.not_begun(session, project.id, 1) == 1

    second = service.publish(session, project, content(), 0, admin)
    assert set(session.scalars(select(Comparison.rubric_id).where(Comparison.project_id == project.id))) == {first.id}
    for comparison in (untouched, judged, on_desk, abandoned, replaced, elsewhere):
        factories.lease(session, comparison)  # each is handed out to somebody

    rubrics = dict(session.execute(select(Comparison.id, Comparison.rubric_id)).all())
    assert {id_ for id_, rubric in rubrics.items() if rubric == second.id} == {untouched.id, abandoned.id}
    assert rubrics[elsewhere.id] not in (first.id, second.id)
    assert session.scalar(select(Judgment.rubric_id).where(Judgment.id == judgment.id)) == first.id
    assert {v.rubric.version: v.judgments for v in queries.versions(session, project.id)} == {2: 0, 1: 1}


def test_whoever_comes_second_judges_by_the_version_of_the_first(session: Session) -> None:
    project, admin = factories.project(session, overlap=2), factories.user(session, "admin")
    first = factories.rubric(session, project)
    comparison = factories.comparison(session, project)
    factories.lease(session, comparison)
    service.publish(session, project, content(), 0, admin)
    factories.lease(session, comparison)
    assert session.scalar(select(Comparison.rubric_id)) == first.id


def test_the_pairs_of_a_ranking_take_the_new_version_together(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    factories.rubric(session, project)
    prompt = factories.prompt(session, project)
    ranking = Ranking(project_id=project.id, prompt_id=prompt.id, size=3)
    session.add(ranking)
    session.flush()
    pairs = [
        factories.comparison(session, project, prompt=prompt, ranking_id=ranking.id, offered=at == 0) for at in range(3)
    ]
    alone = factories.comparison(session, project)
    second = service.publish(session, project, content(), 0, admin)
    factories.lease(session, pairs[0])
    rubrics = dict(session.execute(select(Comparison.id, Comparison.rubric_id)).all())
    assert {id_ for id_, rubric in rubrics.items() if rubric == second.id} == {pair.id for pair in pairs}
    assert rubrics[alone.id] != second.id


def test_publishing_the_same_again_is_refused(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    service.create_first(session, project, content("Be kind."))
    with pytest.raises(Conflict, match="the same as version 1"):
        service.publish(session, project, content("Be kind.  "), 0, admin)
    assert service.publish(session, project, content("Be kind.", allow_tie=False), 0, admin).version == 2
    assert service.publish(session, project, content("Be kind.", allow_tie=False, flags=()), 0, admin).version == 3


def test_an_edit_that_was_not_seen_is_not_overwritten(session: Session) -> None:
    project = factories.project(session)
    ann, bob = factories.user(session, "admin", name="Ann"), factories.user(session, "admin", name="Bob")
    service.save_draft(session, project, columns("Ann's"), 0, ann)
    for stale in (0, 2):
        with pytest.raises(Conflict, match="Ann changed this draft"):
            service.save_draft(session, project, columns("Bob's"), stale, bob)
        with pytest.raises(Conflict, match="Ann changed this draft"):
            service.publish(session, project, content("Bob's"), stale, bob)
        with pytest.raises(Conflict, match="Ann changed this draft"):
            service.discard_draft(session, project, stale)
    assert session.scalars(select(Rubric.guideline)).one() == "Ann's\n"
    assert service.save_draft(session, project, columns("Bob's"), 1, bob).revision == 2
    with pytest.raises(Conflict, match="Bob changed this draft"):
        service.save_draft(session, project, columns("Ann's again"), 1, ann)
    service.discard_draft(session, project, 2)
    with pytest.raises(Conflict, match="published or discarded"):
        service.save_draft(session, project, columns("Bob's"), 2, bob)


def test_two_admins_beginning_a_draft_at_the_same_moment(session: Session, engine: Engine) -> None:
    project = factories.project(session)
    admins = [factories.user(session, "admin", name=name) for name in ("Ann", "Bob")]
    session.commit()
    sessions, barrier = make_session_factory(engine), threading.Barrier(2, timeout=30)

    def save(n: int) -> str:
        barrier.wait()
        try:
            with sessions.begin() as own:
                service.save_draft(own, project, columns(f"by {admins[n].name}"), 0, admins[n])
        except Conflict as error:
            return error.message
        return admins[n].name

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(save, range(2)), key=len)
    assert second.startswith(f"{first} changed this draft")
    assert session.scalars(select(Rubric.guideline)).one() == f"by {first}\n"


def test_a_version_by_its_number(session: Session) -> None:
    project = factories.project(session)
    first = factories.rubric(session, project)
    assert service.published(session, project, 1).id == first.id
    with pytest.raises(NotFound, match="no version 2"):
        service.published(session, project, 2)
    assert session.scalar(select(func.count()).select_from(Rubric)) == 1


QUIZ: list[dict[str, Any]] = [
    {"prompt": "Captial of France?", "first": "Paris", "second": "Rome", "answer": -1, "feedback": "It is Paris."},
    {"prompt": "2 + 2?", "first": "Five, I think.", "second": "Four.", "answer": 1, "feedback": "Count."},
]
# The first question without its typo; then with another right answer; then another question with the same one.
MENDED = [QUIZ[0] | {"prompt": "Capital of France?", "feedback": "Paris is its capital."}, QUIZ[1]]
TURNED = [QUIZ[0] | {"answer": 1}, QUIZ[1]]
OTHER = [QUIZ[0] | {"prompt": "Largest planet?", "first": "Jupiter.", "second": "Mars."}, QUIZ[1]]


@pytest.mark.parametrize(
    ("quiz", "retake", "counts_as"),
    [
        (QUIZ, "changed", 1),
        (MENDED, "changed", 1),
        (TURNED, "changed", None),
        (OTHER, "changed", None),
        (QUIZ[:1], "changed", None),
        (QUIZ[::-1], "changed", None),
        (QUIZ, "yes", None),
        (MENDED, "yes", None),
        (TURNED, "no", 1),
        (QUIZ[:1], "no", 1),
        ([], "no", None),
    ],
)
def test_whether_the_quiz_is_taken_again(
    session: Session, quiz: list[dict[str, Any]], retake: Retake, counts_as: int | None
) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    service.create_first(session, project, content("One.", quiz=QUIZ))
    second = service.publish(session, project, content("Two.", quiz=quiz), 0, admin, retake)
    assert second.quiz_of_version == counts_as
    [event] = session.scalars(select(AuditEvent).where(AuditEvent.action == "rubric.published"))
    assert event.details == {"version": 2} | ({"quiz_version": counts_as or 2} if quiz else {})


def test_a_quiz_counts_as_the_one_it_came_from_however_often_it_was_mended(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")

    def publish(guideline: str, quiz: list[dict[str, Any]], retake: Retake = "changed") -> int | None:
        return service.publish(session, project, content(guideline, quiz=quiz), 0, admin, retake).quiz_of_version

    service.create_first(session, project, content("1", quiz=QUIZ))
    assert publish("2", MENDED) == 1
    assert publish("3", []) is None
    assert publish("4", MENDED) == 1  # over a version without any
    assert publish("5", TURNED) is None
    assert publish("6", QUIZ) == 1  # back to what some have passed
    assert publish("7", QUIZ, "yes") is None
    assert publish("8", MENDED) == 7
