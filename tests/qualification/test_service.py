"""Who has to take the quiz, attempts at it, and their outcome."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from app.access import gate
from app.db import make_session_factory
from app.documents import RubricContent
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Qualification
from app.qualification import queries, service
from app.rubrics import service as rubrics
from tests import factories
from tests.qualification.quizzes import QUIZ, RIGHT, take, with_quiz


def test_without_a_quiz_nobody_has_to_take_one(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    assert not gate.closed(session, project, labeler)
    with_quiz(session, factories.project(session))  # another project's
    factories.rubric(session, project)
    assert not gate.closed(session, project, labeler)
    with pytest.raises(NotFound, match="no training quiz"):
        service.begin(session, project, labeler)


def test_passing_takes_the_share_of_right_answers_that_the_project_asks_for(session: Session) -> None:
    project = factories.project(session, labeling={"quiz_pass": 0.66})
    with_quiz(session, project)
    good, poor = factories.user(session), factories.user(session)
    assert service.standing(session, project, good).needed == 2
    attempt = take(session, project, good, RIGHT | {1: 1})
    assert (attempt.correct, attempt.passed, attempt.finished_at is None) == (2, True, False)
    assert not gate.closed(session, project, good)
    attempt = take(session, project, poor, {0: 1, 1: 1, 2: 1})
    assert (attempt.correct, attempt.passed) == (1, False)
    assert gate.closed(session, project, poor)


@pytest.mark.parametrize(
    ("share", "questions", "needed"), [(0.7, 10, 7), (0.8, 5, 4), (0.8, 3, 3), (0, 4, 0), (1, 7, 7)]
)
def test_how_many_right_answers_pass(session: Session, share: float, questions: int, needed: int) -> None:
    project = factories.project(session, labeling={"quiz_pass": share})
    assert service.needed_of(project, questions) == needed


def test_an_attempt_goes_on_where_it_was_left(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    with_quiz(session, project)
    assert service.standing(session, project, labeler).attempt is None
    attempt = take(session, project, labeler, {0: -1})
    assert gate.closed(session, project, labeler)
    assert service.begin(session, project, labeler).id == attempt.id
    now = service.standing(session, project, labeler)
    assert (now.next_item, now.attempt and now.attempt.correct, now.attempt and now.attempt.passed) == (1, 1, None)


def test_the_first_answer_to_a_question_stands(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    with_quiz(session, project)
    attempt = take(session, project, labeler, {0: 1})
    service.answer(session, project, labeler, attempt.id, 0, -1)
    assert (attempt.answers, attempt.correct) == ({"0": 1}, 0)


def test_what_is_not_an_answer_is_refused(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    with_quiz(session, project, allow_tie=False, quiz=[QUIZ[0], QUIZ[2]])
    attempt = take(session, project, labeler, {})
    with pytest.raises(InvalidInput, match="No answer was chosen"):
        service.answer(session, project, labeler, attempt.id, 0, None)
    for outside in (0, 2, -5):
        with pytest.raises(InvalidInput, match="not on the rubric's scale"):
            service.answer(session, project, labeler, attempt.id, 0, outside)
    for item in (2, -1):
        with pytest.raises(NotFound):
            service.answer(session, project, labeler, attempt.id, item, 1)
    for stranger in (factories.user(session), labeler):
        with pytest.raises(Conflict):
            service.answer(session, project, stranger, attempt.id + (stranger is labeler), 0, 1)
    assert attempt.answers == {}


def test_a_failed_quiz_can_be_taken_again_in_another_order(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    with_quiz(session, project)
    first = take(session, project, labeler, {0: 1, 1: 1, 2: 1})
    assert first.passed is False
    second = take(session, project, labeler, {})
    assert (second.attempt, second.answers) == (2, {})
    assert service.order_of(3, labeler.id, 1) == [0, 1, 2]
    assert service.standing(session, project, labeler).next_item == service.order_of(3, labeler.id, 2)[0]
    with pytest.raises(Conflict, match="has changed"):
        service.answer(session, project, labeler, first.id, 0, -1)
    assert take(session, project, labeler).id == second.id
    assert second.passed
    assert service.begin(session, project, labeler).id == second.id, "who has passed is done"
    for attempt in range(2, 30):
        for questions in (2, 3, 8):
            order = service.order_of(questions, labeler.id, attempt)
            assert sorted(order) == list(range(questions))
            assert order != list(range(questions))
    assert service.order_of(1, labeler.id, 2) == [0]


def test_an_unchanged_quiz_carries_over_and_a_changed_one_does_not(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    passed, under_way = factories.user(session), factories.user(session)
    rubrics.create_first(session, project, RubricContent(guideline="One.", quiz=QUIZ))
    take(session, project, passed)
    attempt = take(session, project, under_way, {0: -1})

    rubrics.publish(session, project, RubricContent(guideline="Two.", quiz=QUIZ), 0, admin)
    assert not gate.closed(session, project, passed)
    assert service.standing(session, project, under_way).next_item == 1
    service.answer(session, project, under_way, attempt.id, 1, 0)
    assert attempt.correct == 2

    changed = [QUIZ[0], QUIZ[1], QUIZ[2] | {"first": "4", "second": "5", "answer": -1}]
    rubrics.publish(session, project, RubricContent(guideline="Two.", quiz=changed), 0, admin)
    for labeler in (passed, under_way):
        assert gate.closed(session, project, labeler)
        assert service.standing(session, project, labeler).attempt is None
    with pytest.raises(Conflict, match="has changed"):
        service.answer(session, project, under_way, attempt.id, 2, 1)
    take(session, project, passed, RIGHT | {2: -1})
    assert not gate.closed(session, project, passed)

    rubrics.publish(session, project, RubricContent(guideline="Three.", quiz=QUIZ), 0, admin)
    assert not gate.closed(session, project, passed), "they passed this very quiz before"
    rubrics.publish(session, project, RubricContent(guideline="Four."), 0, admin)
    assert not gate.closed(session, project, under_way)


def test_who_passed_need_not_take_a_mended_quiz_and_others_begin_it_anew(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    passed, failed, under_way = (factories.user(session) for _ in range(3))
    rubrics.create_first(session, project, RubricContent(guideline="One.", quiz=QUIZ))
    take(session, project, passed)
    take(session, project, failed, {0: 1, 1: 1, 2: 1})
    attempt = take(session, project, under_way, {0: 1})
    mended = [QUIZ[0] | {"prompt": "The capital of France?"}, *QUIZ[1:]]
    second = rubrics.publish(session, project, RubricContent(guideline="One.", quiz=mended), 0, admin)

    assert not gate.closed(session, project, passed)
    assert service.standing(session, project, passed).items[0].prompt == QUIZ[0]["prompt"]
    for labeler in (failed, under_way):
        assert gate.closed(session, project, labeler)
        assert service.standing(session, project, labeler).attempt is None
    with pytest.raises(Conflict, match="has changed"):
        service.answer(session, project, under_way, attempt.id, 1, 0)
    again = take(session, project, under_way)
    assert (again.attempt, again.rubric_id, again.passed) == (2, second.id, True)

    assert queries.totals(session, second) == (2, 1, 3)
    # Of exactly these questions one labeler has answered any.
    assert queries.first_answers(session, second) == {(0, -1): 1, (1, 0): 1, (2, 1): 1}


def test_an_admin_may_ask_for_it_again_or_spare_people(session: Session) -> None:
    project, admin, labeler = factories.project(session), factories.user(session, "admin"), factories.user(session)
    rubrics.create_first(session, project, RubricContent(guideline="One.", quiz=QUIZ))
    take(session, project, labeler)
    rubrics.publish(session, project, RubricContent(guideline="Two.", quiz=QUIZ), 0, admin, "yes")
    assert gate.closed(session, project, labeler)
    assert service.standing(session, project, labeler).attempt is None
    attempt = take(session, project, labeler)
    assert (attempt.attempt, attempt.passed) == (1, True)
    longer = [*QUIZ, QUIZ[0] | {"prompt": "Capital of Italy?", "answer": 1}]
    rubrics.publish(session, project, RubricContent(guideline="Three.", quiz=longer), 0, admin, "no")
    assert not gate.closed(session, project, labeler)
    assert len(service.standing(session, project, labeler).items) == 3, "the quiz that they passed"


def test_whether_a_quiz_is_required_takes_one_query(session: Session, engine: Engine) -> None:
    project, labeler = factories.project(session), factories.user(session)
    with_quiz(session, project)
    take(session, project, labeler)
    statements: list[str] = []
    listen = lambda *args: statements.append(args[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", listen)
    try:
        assert not gate.closed(session, project, labeler)
    finally:
        event.remove(engine, "before_cursor_execute", listen)
    assert len(statements) == 1


def test_two_tabs_at_once(session: Session, engine: Engine) -> None:
    project, labeler = factories.project(session), factories.user(session)
    with_quiz(session, project)
    session.commit()
    sessions, barrier = make_session_factory(engine), threading.Barrier(2, timeout=30)

    def go(item: int) -> None:
        with sessions.begin() as own:
            barrier.wait()
            attempt = service.begin(own, project, labeler)
        barrier.wait()
        with sessions.begin() as own:
            service.answer(own, project, labeler, attempt.id, item, RIGHT[item])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(go, (0, 1)))
    [attempt] = session.scalars(select(Qualification))
    assert (attempt.answers, attempt.correct) == ({"0": -1, "1": 0}, 2)


def test_results_by_version(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    ann, bob, eve = (factories.user(session, name=name) for name in ("Ann", "Bob", "Eve"))
    factories.user(session, name="Not yet")
    first = rubrics.create_first(session, project, RubricContent(guideline="One.", quiz=QUIZ))
    take(session, project, bob, {0: 1, 1: 1, 2: 1})
    take(session, project, bob)
    second = rubrics.publish(session, project, RubricContent(guideline="Two.", quiz=QUIZ), 0, admin)
    take(session, project, ann)
    take(session, project, eve, {0: 1})
    third = rubrics.publish(session, project, RubricContent(guideline="Two.", quiz=QUIZ[:1]), 0, admin)
    take(session, project, ann, {0: -1})

    for rubric in (first, second):
        rows = queries.results(session, rubric, 10, 0)
        assert [(r.name, r.version, r.attempt, r.correct, r.answered, r.passed) for r in rows] == [
            ("Eve", 2, 1, 0, 1, None),
            ("Ann", 2, 1, 3, 3, True),
            ("Bob", 1, 2, 3, 3, True),
        ]
        assert queries.totals(session, rubric) == (2, 1, 4)
        # At first attempts: Ann right thrice, Bob 1 1 1, Eve 1 on the first question.
        assert queries.first_answers(session, rubric) == {(0, -1): 1, (0, 1): 2, (1, 0): 1, (1, 1): 1, (2, 1): 2}
    assert [r.name for r in queries.results(session, first, 1, 1)] == ["Ann"]
    assert queries.totals(session, third) == (1, 0, 4)
    assert [r.version for r in queries.versions_with_quiz(session, project.id)] == [3, 2, 1]
    assert session.scalar(select(func.count()).select_from(Qualification)) == 5
