"""Many labelers at once: real threads, each with its own connection."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from app.db import make_session_factory
from app.errors import PrefloopError
from app.labeling import answers, assigning
from app.labeling.forms import LabelForm
from app.labeling.queries import Task
from app.models import Comparison, Judgment, Lease, Project, User
from tests import factories


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)


def together(jobs: list[Callable[[], object]]) -> list[object]:
    """Runs the jobs at the same moment, each in its own thread; raises what any of them raised."""
    barrier = threading.Barrier(len(jobs), timeout=30)

    def run(job: Callable[[], object]) -> object:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def work(sessions: sessionmaker[Session], project: Project, labeler: User, luck: random.Random) -> None:
    """Labels like a person does, until nothing is left: now and then skips, sends twice, or walks away from a card."""
    walked_away = 0
    with sessions.begin() as session:
        task = assigning.next_task(session, project, labeler)
    while True:
        if task is None:
            with sessions.begin() as session:
                task = assigning.next_task(session, project, labeler)
                if task is None and assigning.idle(session, project, labeler).reason in ("judged", "finished"):
                    return
            continue
        dice = luck.random()
        if dice < 0.05 and walked_away < 3:
            walked_away += 1
            with sessions.begin() as session:  # the machine was switched off: nothing but the clock ends this lease
                past = datetime.now(UTC) - timedelta(seconds=1)
                session.execute(update(Lease).where(Lease.id == task.lease_id).values(expires_at=past))
            task = None
            continue
        if dice < 0.15:
            with sessions.begin() as session:
                position = assigning.release(session, project, task.lease_id, labeler)
                task = assigning.next_task(session, project, labeler, skipped=position)
            continue
        form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=luck.randint(-3, 3))
        for _ in range(2 if dice < 0.3 else 1):
            with sessions.begin() as session:
                answers.submit(session, project, task.lease_id, labeler, form)
                following = assigning.next_task(session, project, labeler)
        task = following


@pytest.mark.parametrize("overlap", [1, 3])
def test_labelers_at_once_give_every_comparison_exactly_its_judgments(
    session: Session, sessions: sessionmaker[Session], overlap: int
) -> None:
    project = factories.project(session, overlap=overlap)
    comparisons = [factories.comparison(session, project).id for _ in range(30)]
    labelers = [factories.user(session) for _ in range(8)]
    session.commit()
    together([lambda n=n, who=who: work(sessions, project, who, random.Random(n)) for n, who in enumerate(labelers)])

    judged = session.execute(select(Judgment.comparison_id, Judgment.labeler_id)).all()
    assert Counter(row.comparison_id for row in judged) == dict.fromkeys(comparisons, overlap)
    assert max(Counter(map(tuple, judged)).values()) == 1
    rows = session.scalars(select(Comparison)).all()
    assert {(row.judgment_count, row.lease_count) for row in rows} == {(overlap, 0)}
    assert {row.state for row in rows} <= {"settled", "in_review"}
    assert session.scalar(select(func.count()).select_from(Lease).where(Lease.state == "live")) == 0


def test_two_tabs_opened_at_once_show_the_same_card(session: Session, sessions: sessionmaker[Session]) -> None:
    project, labeler = factories.project(session), factories.user(session)
    for _ in range(4):
        factories.comparison(session, project)
    session.commit()

    def open_tab() -> Task | None:
        with sessions.begin() as own:
            return assigning.next_task(own, project, labeler)

    tabs = together([open_tab] * 6)
    assert len({tab.lease_id for tab in tabs if isinstance(tab, Task)}) == 1
    assert session.scalar(select(func.count()).select_from(Lease)) == 1


def test_the_same_form_sent_at_the_same_moment_is_one_judgment(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    task = assigning.next_task(session, project, labeler)
    assert task
    session.commit()
    form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=1)

    def send() -> int:
        with sessions.begin() as own:
            return answers.submit(own, project, task.lease_id, labeler, form).id

    assert len(set(together([send] * 6))) == 1
    assert session.scalar(select(func.count()).select_from(Judgment)) == 1


def test_two_tabs_answering_at_the_same_moment(session: Session, sessions: sessionmaker[Session]) -> None:
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    factories.comparison(session, project)
    task = assigning.next_task(session, project, labeler)
    assert task
    session.commit()

    def send(preference: int) -> int | PrefloopError:
        form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=preference)
        try:
            with sessions.begin() as own:
                return answers.submit(own, project, task.lease_id, labeler, form).id
        except PrefloopError as error:
            return error

    outcomes = together([lambda: send(2), lambda: send(-2)])
    assert sorted(type(one).__name__ for one in outcomes) == ["Conflict", "int"]
    assert session.scalar(select(func.count()).select_from(Judgment)) == 1


def test_the_last_place_after_an_expired_lease_goes_to_one(session: Session, sessions: sessionmaker[Session]) -> None:
    """Two people whose leases both ran out send at the same moment; one place is left."""
    project = factories.project(session, overlap=2)
    comparison = factories.comparison(session, project)
    late = [factories.user(session), factories.user(session)]
    tasks = [assigning.next_task(session, project, who) for who in late]
    session.execute(update(Lease).values(state="expired"))
    factories.judgment(session, comparison, preference=0)
    session.commit()

    def send(who: User, task: Task | None) -> str:
        assert task
        form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=0)
        try:
            with sessions.begin() as own:
                answers.submit(own, project, task.lease_id, who, form)
        except PrefloopError as error:
            return type(error).__name__
        return "taken"

    jobs = [lambda who=who, task=task: send(who, task) for who, task in zip(late, tasks, strict=True)]
    assert sorted(map(str, together(jobs))) == ["Gone", "taken"]
    row = session.execute(select(Comparison.judgment_count, Comparison.lease_count, Comparison.state)).one()
    assert tuple(row) == (2, 0, "settled")
