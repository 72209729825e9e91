"""Handing out prompts that need an answer, and accepting the answers."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from threading import Barrier, Thread

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.demonstrations import asking_queries, queries, service
from app.demonstrations.forms import RevisionForm
from app.errors import Conflict, Forbidden, Gone, InvalidInput
from app.models import Project, ProjectLabeler, User
from tests import factories
from tests.demonstrations.desk import answer, decision, demonstrations, task, tasks
from tests.qualification.quizzes import take, with_quiz

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def test_an_answer_waits_for_review_and_its_task_is_gone(session: Session) -> None:
    project, ann = factories.project(session), factories.user(session)
    rubric = factories.rubric(session, project)
    prompt = factories.prompt(session, project, "Why?")
    sample = factories.completion(session, prompt, "Because.")
    given = task(session, project, prompt=prompt, completion_id=sample.id)
    desk = service.next_task(session, project, ann)
    assert desk is not None
    assert (desk.task_id, desk.prompt.id, desk.sample) == (given.id, prompt.id, "Because.")

    form = answer(given, "  Because it is so.\r\nReally. ", rubric_id=rubric.id, duration_ms=1200)
    written = service.submit(session, project, ann, given.id, form)
    assert written.text == "  Because it is so.\nReally. "  # with all spaces: a model learns this text
    assert written.digest == sha256(b"  Because it is so.\nReally. ").hexdigest()
    assert (written.author_id, written.rubric_id, written.completion_id) == (ann.id, rubric.id, sample.id)
    assert (written.duration_ms, written.written) == (1200, None)
    session.refresh(written)
    assert written.state == "pending"
    assert tasks(session) == []
    # The same form again, as a double click sends it.
    assert service.submit(session, project, ann, given.id, form).id == written.id
    assert len(demonstrations(session)) == 1


def test_a_second_tab_sees_the_same_prompt_and_others_see_others(session: Session) -> None:
    project = factories.project(session)
    ann, bob, cid = (factories.user(session) for _ in range(3))
    first, second = task(session, project), task(session, project)
    for person, expected in ((ann, first), (bob, second), (ann, first), (bob, second)):
        desk = service.next_task(session, project, person)
        assert desk is not None
        assert desk.task_id == expected.id
    assert service.next_task(session, project, cid) is None
    assert service.idle(session, project, cid).reason == "taken"
    other = factories.project(session)
    assert service.next_task(session, other, ann) is None
    assert service.idle(session, other, ann).reason == "nothing"


def test_a_prompt_is_held_for_four_leases(session: Session) -> None:
    project, ann = factories.project(session, lease_minutes=10), factories.user(session)
    given = task(session, project)
    service.next_task(session, project, ann)
    session.refresh(given)
    assert given.expires_at is not None
    assert timedelta(minutes=39) < given.expires_at - datetime.now(UTC) <= timedelta(minutes=40)


def test_an_expired_task_takes_the_text_if_nobody_else_has_it(session: Session) -> None:
    project, ann, bob = factories.project(session), factories.user(session), factories.user(session)
    given = task(session, project, labeler_id=ann.id, expires_at=LONG_AGO)
    assert service.submit(session, project, ann, given.id, answer(given)).author_id == ann.id

    # This holds also if it was given back in another tab.
    released = task(session, project)
    assert service.submit(session, project, ann, released.id, answer(released)).author_id == ann.id

    lost = task(session, project, labeler_id=ann.id, expires_at=LONG_AGO)
    taken = service.next_task(session, project, bob)
    assert taken is not None
    assert taken.task_id == lost.id
    with pytest.raises(Gone, match="somebody else is writing"):
        service.submit(session, project, ann, lost.id, answer(lost))
    # The second lease expires as well: then the first one to send the answer gets it.
    lost.expires_at = LONG_AGO
    session.flush()
    assert service.submit(session, project, ann, lost.id, answer(lost)).author_id == ann.id
    with pytest.raises(Gone, match="no longer needs an answer"):
        service.submit(session, project, bob, lost.id, answer(lost, "Another answer."))


def test_whoever_comes_back_late_keeps_the_prompt_that_nobody_took(session: Session) -> None:
    project, ann = factories.project(session), factories.user(session)
    task(session, project)
    late = task(session, project, labeler_id=ann.id, expires_at=LONG_AGO)
    desk = service.next_task(session, project, ann)
    assert desk is not None
    assert desk.task_id == late.id


def test_skipping_gives_another_and_the_skipped_only_on_request(session: Session) -> None:
    project, ann, bob = factories.project(session), factories.user(session), factories.user(session)
    first, second = task(session, project), task(session, project)
    service.next_task(session, project, ann)
    service.skip(session, project, ann, first.id, "unclear")
    service.skip(session, project, ann, first.id, "other")  # no longer her task, so nothing changes
    assert first.skips == [{"labeler": ann.id, "reason": "unclear"}]
    desk = service.next_task(session, project, ann)
    assert desk is not None
    assert desk.task_id == second.id
    service.skip(session, project, ann, second.id, "knowledge")
    assert service.next_task(session, project, ann) is None
    assert service.idle(session, project, ann).reason == "skipped"
    desk = service.next_task(session, project, ann, skipped=True)
    assert desk is not None
    assert desk.task_id == first.id
    service.skip(session, project, ann, first.id, "other")  # a new reason replaces the old one
    assert first.skips == [{"labeler": ann.id, "reason": "other"}]
    assert service.next_task(session, project, bob) is not None
    assert asking_queries.open_tasks(session, project.id)[0].skips


def test_an_empty_answer_and_one_that_is_there_already_are_refused(session: Session) -> None:
    project, ann = factories.project(session), factories.user(session)
    given = task(session, project)
    with pytest.raises(InvalidInput, match="Nothing is written"):
        service.submit(session, project, ann, given.id, answer(given, " \n "))
    imported = factories.demonstration(
        session, session.get_one(queries.Prompt, given.prompt_id), "Same.", digest=service.digest("Same.")
    )
    with pytest.raises(Conflict, match="already exists and is approved"):
        service.submit(session, project, ann, given.id, answer(given, "Same."))
    assert demonstrations(session) == [imported]
    assert len(tasks(session)) == 1


def test_a_rubric_of_another_project_is_not_recorded(session: Session) -> None:
    project, ann = factories.project(session), factories.user(session)
    foreign = factories.rubric(session, factories.project(session))
    given = task(session, project)
    assert service.submit(session, project, ann, given.id, answer(given, rubric_id=foreign.id)).rubric_id is None


def test_a_task_of_another_project_takes_nothing(session: Session) -> None:
    project, ann = factories.project(session), factories.user(session)
    foreign = task(session, factories.project(session))
    with pytest.raises(Gone):
        service.submit(session, project, ann, foreign.id, answer(foreign))


def test_two_people_at_once_get_different_prompts(session: Session, engine: Engine) -> None:
    project = factories.project(session)
    people = [factories.user(session) for _ in range(6)]
    for _ in range(4):
        task(session, project)
    session.commit()
    together, got = Barrier(len(people)), []

    def come(person: User) -> None:
        with make_session_factory(engine).begin() as own:
            mine = own.get_one(User, person.id)
            together.wait()
            desk = service.next_task(own, own.get_one(Project, project.id), mine)
            got.append(desk.task_id if desk else None)

    threads = [Thread(target=come, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = [task_id for task_id in got if task_id is not None]
    assert len(given) == len(set(given)) == 4
    assert got.count(None) == 2


def test_one_person_in_two_tabs_at_once_gets_one_prompt(session: Session, engine: Engine) -> None:
    project, ann = factories.project(session), factories.user(session)
    for _ in range(3):
        task(session, project)
    session.commit()
    together, got = Barrier(2), []

    def come() -> None:
        with make_session_factory(engine).begin() as own:
            mine = own.get_one(User, ann.id)
            together.wait()
            desk = service.next_task(own, own.get_one(Project, project.id), mine)
            got.append(desk.task_id if desk else None)

    threads = [Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == got[1] is not None


def revision(text: str, seen: str) -> RevisionForm:
    return RevisionForm(seen=seen, text=text)


def test_a_rejected_answer_is_revised_and_reviewed_again(session: Session) -> None:
    project, ann, admin = factories.project(session), factories.user(session), factories.user(session, "admin")
    given = task(session, project)
    written = service.submit(session, project, ann, given.id, answer(given, "Too short."))
    session.refresh(written)
    service.reject(session, project, admin, written.id, decision(written, note="Say why."))
    with pytest.raises(InvalidInput, match="was rejected"):
        service.revise(session, project, ann, written.id, revision("Too short.", service.seen(written)))
    with pytest.raises(Forbidden):
        service.revise(session, project, admin, written.id, revision("Mine.", service.seen(written)))
    seen = service.seen(written)
    service.revise(session, project, ann, written.id, revision("Longer, because.", seen))
    assert (written.state, written.text, written.review_note) == ("pending", "Longer, because.", "Say why.")
    service.revise(session, project, ann, written.id, revision("Longer, because.", seen))  # sent twice
    assert written.digest == service.digest("Longer, because.")
    service.approve(session, project, admin, written.id, decision(written))
    with pytest.raises(Conflict, match="approved since"):
        service.revise(session, project, ann, written.id, revision("Even longer.", service.seen(written)))


def test_projects_with_prompts_to_write_for(session: Session) -> None:
    ann, bob = factories.user(session), factories.user(session)
    busy, free, _empty = (factories.project(session) for _ in range(3))
    task(session, busy, labeler_id=bob.id, expires_at=datetime.now(UTC) + timedelta(hours=1))
    task(session, free), task(session, free)
    assert [(found.project.slug, found.tasks) for found in service.projects_with_tasks(session, ann)] == [
        (free.slug, 2)
    ]
    assert [found.project.slug for found in service.projects_with_tasks(session, bob)] == [busy.slug, free.slug]


def test_who_is_paused_or_removed_gives_back_what_they_have_and_hands_nothing_in(session: Session) -> None:
    project, ann, bob = factories.project(session), factories.user(session), factories.user(session)
    held = task(session, project)
    service.next_task(session, project, ann)
    written = factories.demonstration(session, factories.prompt(session, project), author_id=ann.id, state="rejected")
    standing = ProjectLabeler(project_id=project.id, labeler_id=ann.id, state="paused", reason="Please call Bob.")
    session.add(standing)
    session.flush()
    for state, told in (("paused", "Please call Bob"), ("removed", "no longer a labeler")):
        standing.state = state
        session.flush()
        with pytest.raises(Forbidden, match=told):
            service.submit(session, project, ann, held.id, answer(held))
        with pytest.raises(Forbidden, match=told):
            service.revise(session, project, ann, written.id, revision("Another text.", service.seen(written)))
        with pytest.raises(Forbidden, match=told):
            service.sample_on_desk(session, project, ann, held.id)
        assert service.next_task(session, project, ann) is None
        assert service.idle(session, project, ann) == (state, "Please call Bob." if state == "paused" else "")
        assert service.projects_with_tasks(session, ann) == []
    assert service.next_task(session, project, bob) is not None  # it is free for others
    assert len(demonstrations(session)) == 1


def test_a_task_that_was_not_given_takes_nothing_from_who_has_not_passed_the_quiz(session: Session) -> None:
    """Knowing a task's id does not let anybody skip the quiz."""
    project, ann = factories.project(session), factories.user(session)
    with_quiz(session, project)
    free = task(session, project)
    with pytest.raises(Forbidden, match="training quiz"):
        service.submit(session, project, ann, free.id, answer(free))
    take(session, project, ann)
    assert service.submit(session, project, ann, free.id, answer(free)).author_id == ann.id
