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
from app.labeling import answers, assigning, leases, outlook
from app.labeling.forms import LabelForm
from app.labeling.queries import Task
from app.models import Comparison, Judgment, LabelerGroup, LabelerGroupMember, Lease, Project, User
from tests import factories
from tests.labeling.desk import fill, ranking


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)


def together(jobs: list[Callable[[], object]]) -> list[object]:
    """Run the jobs at the same moment in separate threads; raise any error they raised."""
    barrier = threading.Barrier(len(jobs), timeout=30)

    def run(job: Callable[[], object]) -> object:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def work(sessions: sessionmaker[Session], project: Project, labeler: User, luck: random.Random) -> None:
    """Label like a person until nothing is left: sometimes skip, send twice, or leave a card."""
    walked_away = 0
    with sessions.begin() as session:
        task = assigning.next_task(session, project, labeler)
    while True:
        if task is None:
            with sessions.begin() as session:
                task = assigning.next_task(session, project, labeler)
                if task is None and outlook.idle(session, project, labeler).reason == "finished":
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
                position = leases.release(session, project, task.lease_id, labeler)
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
    """Two people with expired leases send at the same moment, and one place is left."""
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


def answers_of(luck: random.Random, task: Task) -> dict[str, object]:
    """Return any answer: a preference, "cannot judge", or an order of ranked responses."""
    if task.is_ranking:
        return {"preference": None, "ranks": [luck.choice([1, 2, 3, ""]) for _ in task.responses[1:]] + [1]}
    return {"preference": luck.choice([-2, -1, 0, 1, 2, "cannot_judge"])}


def label(sessions: sessionmaker[Session], project: Project, labeler: User, luck: random.Random) -> None:
    """Like `work`, with all kinds of answers, until only unlimited tasks are left: repeats of repeats."""
    for _ in range(400):
        with sessions.begin() as session:
            task = assigning.next_task(session, project, labeler)
            if task is None:
                if outlook.idle(session, project, labeler).reason in ("finished", "kept", "paused"):
                    return
                continue
            if luck.random() < 0.05:
                leases.skip(session, project, task.lease_id, labeler, "not mine")
                continue
        form = LabelForm.model_validate(
            {"idempotency_key": uuid4(), "rubric_id": task.rubric.id} | answers_of(luck, task)
        )
        with sessions.begin() as session:
            answers.submit(session, project, task.lease_id, labeler, form)


def test_every_kind_of_task_at_once_keeps_exactly_its_overlap(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    """Eight people; adaptive overlap, rankings, "cannot judge", reservations, calibration items and repeats."""
    labeling = {
        "adaptive": {"at_least": 1, "at_most": 4, "sure": 0.9},
        "calibration": {"rate": 0.2, "least": 1000},
        "repeats": {"rate": 0.1, "gap": 3},
    }
    project = factories.project(session, labeling=labeling)
    labelers = [factories.user(session) for _ in range(8)]
    experts = LabelerGroup(project_id=project.id, name="experts")
    session.add(experts)
    session.flush()
    session.add_all([LabelerGroupMember(group_id=experts.id, labeler_id=who.id) for who in labelers[:4]])
    adaptive = [factories.comparison(session, project, overlap=1, overlap_max=4) for _ in range(10)]
    fixed = [factories.comparison(session, project, overlap=2) for _ in range(6)]
    grouped = [factories.comparison(session, project, overlap=2, group_id=experts.id) for _ in range(4)]
    kept = factories.comparison(session, project, overlap=1, labeler_id=labelers[7].id)
    ranked = [pair for _ in range(3) for pair in ranking(session, project, overlap=2)]
    items = [factories.comparison(session, project, purpose="calibration", gold=1, overlap=1) for _ in range(3)]
    session.commit()
    together([lambda n=n, who=who: label(sessions, project, who, random.Random(n)) for n, who in enumerate(labelers)])

    session.expire_all()
    judged = session.execute(select(Judgment.comparison_id, Judgment.labeler_id)).all()
    assert max(Counter(map(tuple, judged)).values()) == 1
    by = Counter(row.comparison_id for row in judged)
    for row in session.scalars(select(Comparison)):
        assert (row.judgment_count, row.lease_count) == (by[row.id], 0)
        assert row.judgment_count <= row.overlap
    for one in (*adaptive, *fixed, *grouped, kept, *ranked):
        session.refresh(one)
        assert one.state in ("settled", "in_review")
        assert by[one.id] == one.overlap
    assert all(1 <= one.overlap <= 4 for one in adaptive)
    assert all(2 <= one.overlap <= 4 for one in (*fixed, *grouped))
    assert {row.labeler_id for row in judged if row.comparison_id == kept.id} == {labelers[7].id}
    members = {who.id for who in labelers[:4]}
    assert {row.labeler_id for row in judged if row.comparison_id in {one.id for one in grouped}} <= members
    for pairs in (ranked[n : n + 3] for n in range(0, 9, 3)):
        assert len({by[pair.id] for pair in pairs}) == 1
    assert all(session.get_one(Comparison, one.id).state == "open" for one in items)
    repeats = session.scalars(select(Comparison).where(Comparison.purpose == "repeat")).all()
    assert all(by[one.id] <= 1 for one in repeats)
    assert {(one.repeat_of_id, one.labeler_id) for one in repeats} <= {tuple(row) for row in judged}


def test_the_last_place_of_an_item_that_just_grew_goes_to_one(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    """Eight ask at once for a comparison that needs one judgment; each answer leaves doubt, so it needs more."""
    labeling = {"adaptive": {"at_least": 1, "at_most": 8, "sure": 0.999}}
    project = factories.project(session, labeling=labeling)
    comparison = factories.comparison(session, project, overlap=1, overlap_max=8)
    labelers = [factories.user(session) for _ in range(8)]
    session.commit()

    def answer_it(who: User) -> None:
        while True:
            with sessions.begin() as own:
                task = assigning.next_task(own, project, who)
            if task is not None:
                break
        form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=0)
        with sessions.begin() as own:
            answers.submit(own, project, task.lease_id, who, form)

    together([lambda who=who: answer_it(who) for who in labelers])
    session.refresh(comparison)
    assert (comparison.judgment_count, comparison.overlap, comparison.lease_count) == (8, 8, 0)
    assert comparison.state != "open"


def test_an_item_goes_on_as_one_copy_when_eight_ask_under_a_new_rubric(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    project = factories.project(session, labeling={"calibration": {"rate": 1, "least": 1000}})
    item = factories.comparison(session, project, purpose="calibration", gold=1, overlap=1)
    factories.judgment(session, item, preference=1)
    fill(session, factories.comparison(session, project, overlap=100), 50)
    factories.rubric(session, project, version=2)
    labelers = [factories.user(session) for _ in range(8)]
    session.commit()

    def ask(who: User) -> None:
        with sessions.begin() as own:
            assigning.next_task(own, project, who)

    together([lambda who=who: ask(who) for who in labelers])
    assert session.scalar(select(func.count()).where(Comparison.repeat_of_id == item.id)) == 1


def test_calibration_items_are_given_out_to_eight_at_once(session: Session, sessions: sessionmaker[Session]) -> None:
    project = factories.project(session, labeling={"calibration": {"rate": 1, "least": 1000}})
    items = [factories.comparison(session, project, purpose="calibration", gold=1, overlap=1) for _ in range(2)]
    item_ids = {one.id for one in items}
    fill(session, factories.comparison(session, project, overlap=100), 200)
    labelers = [factories.user(session) for _ in range(8)]
    session.commit()

    def measured(who: User) -> None:
        given = 0
        while given < len(item_ids):  # an item that somebody holds at that very moment is passed over
            with sessions.begin() as own:
                task = assigning.next_task(own, project, who)
            if task is None:
                continue
            given += task.position.comparison_id in item_ids
            form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=1)
            with sessions.begin() as own:
                answers.submit(own, project, task.lease_id, who, form)

    together([lambda who=who: measured(who) for who in labelers])
    judged = Counter(session.scalars(select(Judgment.comparison_id)))
    assert [judged[one.id] for one in items] == [8, 8]
    for one in items:
        session.refresh(one)
        assert (one.judgment_count, one.lease_count, one.state) == (8, 0, "open")
