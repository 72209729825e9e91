"""Fits, removals and new judgments at the same time: there are no deadlocks, and the results are consistent."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.labelers import removal_queries, service
from app.labeling import answers, settling
from app.models import Comparison, Judgment, Project, ProjectLabeler, User
from tests import factories
from tests.labelers.scenes import Habit, judged


def test_fits_removals_and_settling_at_once(session: Session, engine: Engine) -> None:
    project = factories.project(session, labeling={"consensus": "dawid_skene"})
    labelers, ids = judged(session, project, [Habit(f"L{i}") for i in range(8)], comparisons=120, overlap=3)
    admin = factories.user(session, "admin")
    newcomer = factories.user(session)
    # Every other comparison is open and waits for one more.
    some = ids[::2]
    session.query(Comparison).where(Comparison.id.in_(some)).update(
        {"state": "open", "overlap": 4}, synchronize_session=False
    )
    session.commit()
    make = make_session_factory(engine)

    def transaction(work: Callable[[Session, Project], Any]) -> None:
        with make() as own, own.begin():
            work(own, own.get_one(Project, project.id))

    def fit() -> None:
        for _ in range(5):
            transaction(service.refit)

    def remove() -> None:
        for labeler in labelers[:3]:
            transaction(lambda own, p, id_=labeler.id: service.remove(own, p, own.get_one(User, admin.id), id_, "spam"))

    def answer() -> None:
        for id_ in some:
            transaction(lambda own, _, id_=id_: _answer(own, id_, newcomer.id))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for work in (fit, remove, answer)]:
            done.result(timeout=120)  # a deadlock would be an error here

    transaction(service.refit)
    session.rollback()
    live = select(func.count()).where(
        Judgment.superseded_at.is_(None), Judgment.labeler_id.in_(x.id for x in labelers[:3])
    )
    assert session.scalar(live) == 0
    counted = select(Judgment.comparison_id, func.count()).where(Judgment.superseded_at.is_(None))
    counts = dict(session.execute(counted.group_by(Judgment.comparison_id)).all())
    for row in session.scalars(select(Comparison)):
        assert row.judgment_count == counts.get(row.id, 0)
        assert (row.state == "open") == (row.p_b is None)
        assert row.state == "open" or row.judgment_count >= row.overlap
    states = select(ProjectLabeler.state, func.count()).group_by(ProjectLabeler.state)
    assert dict(session.execute(states).all()) == {"removed": 3, "active": 6}


def _answer(session: Session, comparison_id: int, labeler_id: int) -> None:
    """Lock in the order of a labeler's answer: the labeler's row first, then the comparison's."""
    session.execute(select(User.id).where(User.id == labeler_id).with_for_update(key_share=True))
    comparison = session.scalars(select(Comparison).where(Comparison.id == comparison_id).with_for_update()).one()
    factories.judgment(session, comparison, preference=1, labeler_id=labeler_id)
    settling.settle(session, [comparison_id])


def test_who_takes_back_an_answer_to_a_repeat_waits_for_nobody_at_what_it_repeats(
    session: Session, engine: Engine
) -> None:
    """An admin who removes a labeler locks the original first and the repeat next: this used to cause a deadlock."""
    project = factories.project(session)
    labeler, other = factories.user(session), factories.user(session)
    original = factories.comparison(session, project, overlap=2)
    for each in (labeler, other):
        factories.judgment(session, original, preference=1, labeler_id=each.id)
    repeat = factories.comparison(session, project, purpose="repeat", repeat_of_id=original.id, overlap=1)
    lease = factories.lease(session, repeat, labeler_id=labeler.id, state="submitted")
    factories.judgment(session, repeat, preference=1, labeler_id=labeler.id, lease_id=lease.id)
    repeat.state = "settled"
    session.commit()
    make = make_session_factory(engine)
    with make() as admin, make() as own:
        removal_queries.take_out(admin, project.id, other.id)
        own.execute(text("SET LOCAL lock_timeout = '10s'"))
        answers.undo(own, own.get_one(Project, project.id), own.get_one(User, labeler.id))
        own.commit()
        admin.commit()
    session.expire_all()
    assert (repeat.judgment_count, repeat.lease_count, repeat.state) == (0, 1, "open")
    assert original.judgment_count == 1
