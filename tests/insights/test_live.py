"""Live figures equal figures computed from all judgments, whatever happened to the judgments, also concurrently."""

import random
import threading
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.domain.bootstrap import Estimate
from app.insights import queries, service
from app.models import AgreementTally, Comparison, Judgment, Project, User
from app.models.user import USER_KINDS
from tests import factories

PREFERENCES = (None, *range(-4, 5))


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def labelers(session: Session, number: int = 8) -> list[User]:
    return [factories.user(session, kind=USER_KINDS[i % len(USER_KINDS)]) for i in range(number)]


def tallied(session: Session, project: Project) -> Counter[tuple[int, ...]]:
    return Counter({tuple(answers): n for answers, n in queries.tally(session, project.id)})


def recounted(session: Session, project: Project) -> Counter[tuple[int, ...]]:
    """Return patterns of answers, read judgment by judgment."""
    found = (
        select(Comparison.id, User.kind, Judgment.preference)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .join(User, User.id == Judgment.labeler_id)
        .where(Comparison.project_id == project.id, Comparison.state != "withdrawn", Comparison.purpose != "repeat")
        .where(Judgment.superseded_at.is_(None), Judgment.preference.is_not(None))
    )
    units: dict[int, list[int]] = {}
    for comparison, kind, preference in session.execute(found):
        units.setdefault(comparison, []).append(9 * USER_KINDS.index(kind) + preference + 4)
    return Counter(tuple(sorted(answers)) for answers in units.values())


def check(session: Session, project: Project) -> None:
    """Patterns are exact, and both computations give the same figures with the same intervals."""
    assert tallied(session, project) == recounted(session, project)
    for kinds in (service.PEOPLE, ("simulated",), USER_KINDS):
        live, table = service.live(session, project.id, kinds), service.table(session, project.id, kinds)
        assert live.figures == table.whole._replace(cohen_kappa=Estimate(None))
        assert sum(live.preferences.values()) == table.whole.judgments


def judge(session: Session, row: Comparison, labeler: User, preference: int | None) -> None:
    session.execute(
        insert(Judgment).values(
            comparison_id=row.id, labeler_id=labeler.id, rubric_id=row.rubric_id, preference=preference
        )
    )


def supersede(session: Session, *conditions: Any) -> None:
    session.execute(
        update(Judgment)
        .where(Judgment.superseded_at.is_(None), *conditions)
        .values(superseded_at=func.now(), superseded_for="undone")
        .execution_options(synchronize_session=False)
    )


def live_judgment(row: Comparison, labeler: User) -> Any:
    return select(Judgment.id).where(
        Judgment.comparison_id == row.id, Judgment.labeler_id == labeler.id, Judgment.superseded_at.is_(None)
    )


@pytest.mark.parametrize("seed", range(3))
def test_after_a_random_history(session: Session, project: Project, seed: int) -> None:
    draw = random.Random(seed)
    people = labelers(session)
    rows = [
        factories.comparison(session, project, overlap=20, purpose=draw.choice(("train", "heldout"))) for _ in range(12)
    ]
    repeat = factories.comparison(session, project, overlap=20, purpose="repeat", repeat_of_id=rows[0].id)
    other = factories.comparison(session, factories.project(session), overlap=20)
    for _ in range(250):
        row, labeler = draw.choice([*rows, repeat, other]), draw.choice(people)
        does = draw.random()
        if does < 0.08:
            state = "open" if row.state == "withdrawn" else "withdrawn"
            row.state = state
            session.flush()
        elif does < 0.1:
            supersede(session, Judgment.labeler_id == labeler.id)  # removed: all of theirs at once
        elif session.scalar(live_judgment(row, labeler)) is None:
            judge(session, row, labeler, draw.choice(PREFERENCES))
        elif does < 0.6:
            supersede(session, Judgment.comparison_id == row.id, Judgment.labeler_id == labeler.id)
            if does < 0.4:  # an edit, not an undo
                judge(session, row, labeler, draw.choice(PREFERENCES))
    check(session, project)


def test_many_at_once(session: Session, project: Project) -> None:
    """An import adds several judgments to each of many comparisons in one statement."""
    people = labelers(session)
    rows = [factories.comparison(session, project, overlap=20) for _ in range(30)]
    rows[3].state = "withdrawn"
    session.flush()
    draw = random.Random(4)
    new = [
        {
            "comparison_id": row.id,
            "labeler_id": labeler.id,
            "rubric_id": row.rubric_id,
            "preference": draw.choice(PREFERENCES),
        }
        for row in rows
        for labeler in draw.sample(people, draw.randint(0, 8))
    ]
    session.execute(insert(Judgment), new)
    check(session, project)
    supersede(session, Judgment.comparison_id.in_([row.id for row in rows[::2]]))
    check(session, project)


def test_a_transaction_that_fails_leaves_nothing(session: Session, project: Project) -> None:
    row = factories.comparison(session, project, overlap=20)
    session.commit()
    judge(session, row, factories.user(session), 2)
    session.rollback()
    assert tallied(session, project) == Counter()


def test_labelers_judge_withdraw_and_undo_at_the_same_time(engine: Engine, session: Session, project: Project) -> None:
    people = labelers(session)
    rows = [factories.comparison(session, project, overlap=20) for _ in range(3)]
    session.commit()
    factory, project_id = make_session_factory(engine), project.id
    failed: list[BaseException] = []
    turn = text("UPDATE comparison SET state = CASE state WHEN 'open' THEN 'withdrawn' ELSE 'open' END WHERE id = :id")

    fold = text(
        "SELECT fold_tally(:project) WHERE pg_try_advisory_xact_lock(hashtextextended('agreement_tally', :project))"
    )

    def work(labeler: User, seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(25):
                row = draw.choice(rows)
                with factory() as own, own.begin():
                    does = draw.random()
                    if does < 0.1:
                        own.execute(turn, {"id": row.id})
                    elif does < 0.2:
                        own.execute(fold, {"project": project_id})
                    elif own.scalar(live_judgment(row, labeler)) is None:
                        judge(own, row, labeler, draw.choice(PREFERENCES))
                    else:
                        supersede(own, Judgment.comparison_id == row.id, Judgment.labeler_id == labeler.id)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(labeler, seed)) for seed, labeler in enumerate(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    check(session, project)


def test_nobody_waits_for_a_judgment_of_another_comparison(engine: Engine, session: Session, project: Project) -> None:
    """Two labelers give the same answer at once, each to a different comparison, so they share no row."""
    first, second = (factories.comparison(session, project) for _ in range(2))
    ann, bob = labelers(session, 2)
    session.commit()
    factory = make_session_factory(engine)
    with factory() as one, factory() as other:
        judge(one, first, ann, 1)
        other.execute(text("SET LOCAL lock_timeout = '2s'"))
        judge(other, second, bob, 1)  # while the first has not committed
        other.commit()
        one.commit()
    check(session, project)


def test_an_account_that_becomes_of_another_kind_takes_its_judgments_along(session: Session, project: Project) -> None:
    people = labelers(session)
    rows = [factories.comparison(session, project, overlap=20) for _ in range(6)]
    elsewhere = factories.comparison(session, factories.project(session), overlap=20)
    withdrawn = factories.comparison(session, project, overlap=20, state="withdrawn")
    repeat = factories.comparison(session, project, overlap=20, purpose="repeat", repeat_of_id=rows[0].id)
    draw = random.Random(7)
    for row in (*rows, elsewhere, withdrawn, repeat):
        for labeler in draw.sample(people, 5):
            judge(session, row, labeler, draw.choice(PREFERENCES))
    supersede(session, Judgment.comparison_id == rows[1].id, Judgment.labeler_id == people[0].id)
    for labeler, kind in ((people[0], "simulated"), (people[1], "person"), (people[0], "person")):
        labeler.kind = kind
        session.flush()
        check(session, project)
    withdrawn.state = "open"
    session.flush()
    check(session, project)


def test_a_comparison_that_becomes_a_repeat_no_longer_counts(session: Session, project: Project) -> None:
    ann, bob = labelers(session, 2)
    row, other = (factories.comparison(session, project, overlap=20) for _ in range(2))
    for labeler in (ann, bob):
        judge(session, row, labeler, 1)
    row.repeat_of_id, row.purpose = other.id, "repeat"
    session.flush()
    assert tallied(session, project) == Counter()
    row.purpose, row.repeat_of_id = "train", None
    session.flush()
    check(session, project)


def test_judgments_and_kinds_change_at_the_same_time(engine: Engine, session: Session, project: Project) -> None:
    people = labelers(session)
    rows = [factories.comparison(session, project, overlap=20) for _ in range(4)]
    session.commit()
    factory, failed = make_session_factory(engine), []
    turn = text("UPDATE user_account SET kind = :kind WHERE id = :id")

    def work(labeler: User, seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(25):
                row = draw.choice(rows)
                with factory() as own, own.begin():
                    if draw.random() < 0.3:
                        own.execute(turn, {"kind": draw.choice(USER_KINDS), "id": draw.choice(people).id})
                    elif own.scalar(live_judgment(row, labeler)) is None:
                        judge(own, row, labeler, draw.choice(PREFERENCES))
                    else:
                        supersede(own, Judgment.comparison_id == row.id, Judgment.labeler_id == labeler.id)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(labeler, seed)) for seed, labeler in enumerate(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    check(session, project)


def test_rows_are_added_up_now_and_then(session: Session, project: Project) -> None:
    """A judgment costs the same, however many came before, because little is read."""
    labeler = factories.user(session)
    row = factories.comparison(session, project, overlap=20)
    key = {"comparison": row.id, "labeler": labeler.id, "rubric": row.rubric_id}
    add = text(
        "INSERT INTO judgment (comparison_id, labeler_id, rubric_id, preference) "
        "VALUES (:comparison, :labeler, :rubric, 1)"
    )
    undo = text(
        "UPDATE judgment SET superseded_at = now(), superseded_for = 'undone' "
        "WHERE comparison_id = :comparison AND superseded_at IS NULL"
    )
    for _ in range(520):
        session.execute(add, key)
        session.execute(undo, key)
    session.execute(add, key)
    # 1041 rows were added, the thousandth added up those before.
    assert (session.scalar(select(func.count()).select_from(AgreementTally)) or 0) < 60
    check(session, project)
