"""There are no deadlocks: what a labeler's request waits for, and which locks it has meanwhile."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session, sessionmaker

from app.labeling import answers, leases, queries
from app.models import Comparison, Lease
from tests import factories
from tests.conftest import SignedIn
from tests.labeling.desk import answer, counts, take
from tests.labeling.test_mixing import purpose, repeating
from tests.labeling.test_routes import url
from tests.waiting import start_and_wait_for_its_lock


@pytest.fixture
def factory(session: Session) -> sessionmaker[Session]:
    return sessionmaker(session.get_bind(), expire_on_commit=False)


def never_waits(session: Session) -> None:
    session.execute(text("SET LOCAL lock_timeout = 1"))  # millisecond


def test_renewing_does_not_wait_for_somebody_who_ends_the_same_lease(
    session: Session, factory: sessionmaker[Session]
) -> None:
    comparison = factories.comparison(session, overlap=2)
    late, other = factories.user(session), factories.user(session)
    overdue = factories.lease(session, comparison, labeler_id=late.id)
    session.execute(update(Lease).values(expires_at=text("now() - interval '1 minute'")))
    project = comparison.project_id
    session.commit()
    with factory() as ending, factory() as renewing:
        queries.renew_live_leases(ending, project, other.id, timedelta(minutes=15))
        never_waits(renewing)
        assert queries.renew_live_leases(renewing, project, late.id, timedelta(minutes=15)) == []
        ending.commit()
    session.expire_all()
    assert session.get_one(Lease, overdue.id).state == "expired"
    assert counts(session, comparison.id) == (0, 0)


def test_renewing_again_does_not_wait_for_somebody_who_answers_the_same_comparison(
    session: Session, factory: sessionmaker[Session]
) -> None:
    """Undoing renews leases more than once. If a row changes again in a transaction, PostgreSQL checks foreign keys."""
    comparison = factories.comparison(session, overlap=2)
    labeler = factories.user(session)
    held = factories.lease(session, comparison, labeler_id=labeler.id)
    project = comparison.project_id
    session.commit()
    with factory() as answering, factory() as renewing:
        for _ in range(2):
            never_waits(renewing)
            assert queries.renew_live_leases(renewing, project, labeler.id, timedelta(minutes=15)) == [held.id]
            queries.lock_comparison(answering, comparison.id)


def test_two_people_of_whom_one_answers_what_the_other_gives_back(
    session: Session, sign_in: Callable[..., SignedIn], factory: sessionmaker[Session]
) -> None:
    """The first labeler's other task has expired. The next request notices it: here, that of the one who leaves."""
    project = factories.project(session, overlap=2)
    shared, of_first, of_second = (factories.comparison(session, project) for _ in range(3))
    second = sign_in("labeler")
    assert second.user
    first = factories.user(session)
    task = take(session, project, first)
    assert task.position.comparison_id == shared.id
    overdue = factories.lease(session, of_first, labeler_id=first.id)
    factories.lease(session, of_second, labeler_id=second.user.id)
    ahead = factories.lease(session, shared, labeler_id=second.user.id)
    session.execute(update(Lease).where(Lease.id == ahead.id).values(created_at=text("now() + interval '1 second'")))
    session.execute(update(Lease).where(Lease.id == overdue.id).values(expires_at=text("now() - interval '1 minute'")))
    session.commit()
    second.post(f"{url(project)}/here")  # a form token, and with that nothing else is to be asked for
    session.execute(
        update(Lease).where(Lease.id == overdue.id).values(state="live", expires_at=text("now() - interval '1 minute'"))
    )
    session.commit()
    said: list[int] = []
    with factory.begin() as own:
        answers.submit(own, project, task.lease_id, first, answer(task))
        leaving = start_and_wait_for_its_lock(
            lambda: said.append(second.post(f"{url(project)}/{ahead.id}/release").status_code), factory
        )
        never_waits(own)
        leases.renew(own, project, first)
    leaving.join()
    assert said == [204]
    assert session.scalar(select(Lease.state).where(Lease.id == ahead.id)) == "released"
    assert counts(session, shared.id) == (1, 0)


def test_a_repeat_of_what_somebody_is_deciding_is_not_waited_for(
    session: Session, factory: sessionmaker[Session]
) -> None:
    project, labeler, given = repeating(session, gap=1, n=2)
    session.commit()
    with factory() as deciding, factory() as asking:
        deciding.scalars(select(Comparison).where(Comparison.id == given[0].comparison_id).with_for_update()).one()
        never_waits(asking)
        assert purpose(asking, take(asking, project, labeler)) == "train"
