"""Who gets which task: reservations, queues and positions in them, skipped tasks, and where a search looks."""

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from app.db import make_session_factory
from app.labeling import answers, assigning, claim_queries, leases, outlook
from app.models import (
    Comparison,
    LabelerGroup,
    LabelerGroupMember,
    Lease,
    Project,
    ProjectLabeler,
    QueuePlace,
    User,
)
from tests import factories
from tests.labeling.desk import end_overdue, few_rows_read, fill, judge, run_out, take, vacuum


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)


def group(session: Session, project: Project, *members: User) -> LabelerGroup:
    row = LabelerGroup(project_id=project.id, name="experts")
    session.add(row)
    session.flush()
    session.add_all([LabelerGroupMember(group_id=row.id, labeler_id=member.id) for member in members])
    session.flush()
    return row


def given(session: Session, project: Project, labeler: User, n: int = 999) -> list[int]:
    """Let the labeler judge until nothing is left; return the comparisons in the order in which they came."""
    found: list[int] = []
    while len(found) < n and (task := assigning.next_task(session, project, labeler)):
        found.append(task.position.comparison_id)
        judge(session, project, labeler, task)
    return found


# --- kept by name ----------------------------------------------------------------------------------------------------


def test_what_is_kept_for_a_labeler_comes_first_and_goes_to_nobody_else(session: Session) -> None:
    project, labeler, other = factories.project(session, overlap=1), factories.user(session), factories.user(session)
    free = factories.comparison(session, project, priority=9)
    kept = factories.comparison(session, project, labeler_id=labeler.id)
    assert given(session, project, other) == [free.id]
    free_again = factories.comparison(session, project, priority=9)
    assert given(session, project, labeler) == [kept.id, free_again.id]


def test_what_is_kept_for_a_group_goes_to_its_members(session: Session) -> None:
    project = factories.project(session, overlap=2)
    members, other = [factories.user(session) for _ in range(2)], factories.user(session)
    experts = group(session, project, *members)
    free = factories.comparison(session, project)
    kept = [factories.comparison(session, project, group_id=experts.id, priority=n).id for n in (0, 3, 0)]
    assert given(session, project, other) == [free.id]
    assert outlook.idle(session, project, other).reason == "kept"
    for member in members:
        assert given(session, project, member)[:3] == [kept[1], kept[0], kept[2]]


def test_who_joins_a_group_gets_what_is_kept_for_it(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    experts = group(session, project)
    kept = factories.comparison(session, project, group_id=experts.id)
    assert given(session, project, labeler) == []
    assert outlook.idle(session, project, labeler).reason == "kept"
    session.add(LabelerGroupMember(group_id=experts.id, labeler_id=labeler.id))
    assert given(session, project, labeler) == [kept.id]


def test_a_group_of_another_project_opens_nothing(session: Session) -> None:
    project, elsewhere, labeler = factories.project(session), factories.project(session), factories.user(session)
    experts = group(session, elsewhere, labeler)
    kept = factories.comparison(session, elsewhere, group_id=experts.id)
    factories.published_rubric(session, project)
    assert given(session, project, labeler) == []
    assert given(session, elsewhere, labeler) == [kept.id]


def test_freed_comparisons_return_to_the_queue_behind_everybody(session: Session) -> None:
    project, labeler, other = factories.project(session, overlap=1), factories.user(session), factories.user(session)
    kept = factories.comparison(session, project, labeler_id=other.id)
    late = factories.comparison(session, project)
    assert given(session, project, labeler) == [late.id]
    session.execute(update(Comparison).where(Comparison.id == kept.id).values(labeler_id=None))
    assert given(session, project, labeler) == [kept.id]


# --- places ----------------------------------------------------------------------------------------------------------


def test_priorities_that_change_are_seen_at_once(session: Session) -> None:
    project, labeler, other = factories.project(session, overlap=2), factories.user(session), factories.user(session)
    ids = [factories.comparison(session, project).id for _ in range(5)]
    assert given(session, project, labeler, 2) == ids[:2]
    session.execute(update(Comparison).where(Comparison.id == ids[4]).values(priority=3))
    assert given(session, project, labeler) == [ids[4], ids[2], ids[3]]
    session.execute(update(Comparison).where(Comparison.id == ids[3]).values(priority=1))
    assert given(session, project, other) == [ids[4], ids[3], ids[0], ids[1], ids[2]]


def test_more_judgments_wanted_of_what_is_behind(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    early, late = factories.comparison(session, project), factories.comparison(session, project)
    assert given(session, project, factories.user(session), 1) == [early.id]
    assert given(session, project, labeler) == [late.id]
    session.execute(update(Comparison).where(Comparison.id == early.id).values(state="open", overlap=2))
    assert given(session, project, labeler) == [early.id]


def test_many_that_open_behind_come_in_order_of_urgency(session: Session) -> None:
    """There are more than are sorted separately, so the labeler's search starts again."""
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    early = [factories.comparison(session, project).id for _ in range(3)]
    assert given(session, project, labeler) == early
    first = factories.comparison(session, project, priority=1)
    ordinary = [first.id, *fill(session, first, claim_queries.FEW + 20)]
    urgent = factories.comparison(session, project, priority=2).id
    assert given(session, project, labeler) == [urgent, *ordinary]


def test_what_was_inserted_earlier_and_committed_later_is_found(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    """A long import writes comparisons that nobody can see yet while a labeler passes their position."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    factories.published_rubric(session, project)
    session.commit()
    with sessions() as importing:
        early = factories.comparison(importing, project).id
        late = factories.comparison(session, project).id
        session.commit()
        assert early < late
        assert given(session, project, labeler) == [late]
        session.commit()
        assert given(session, project, labeler) == []
        session.commit()
        importing.commit()
    assert given(session, project, labeler) == [early]


def test_what_a_labeler_took_back_is_found_again_behind_them(session: Session) -> None:
    """It always had room: other people's places in it were free."""
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    ids = [factories.comparison(session, project).id for _ in range(3)]
    for _ in range(2):
        judge(session, project, labeler, take(session, project, labeler))
        session.commit()
    take(session, project, labeler)
    session.commit()
    lease_id = answers.undo(session, project, labeler)
    run_out(session, lease_id)
    end_overdue(session)
    session.execute(update(Lease).where(Lease.state == "live").values(state="released"))
    assert given(session, project, labeler) == ids[1:]


def test_a_place_from_before_a_restore_is_forgotten(session: Session) -> None:
    """Transaction ids start again in another cluster; comparisons that open there must not look old."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    behind = factories.comparison(session, project)
    far = QueuePlace(project_id=project.id, labeler_id=labeler.id, checked_xid=2**62)
    session.add(far)
    session.flush()
    assert given(session, project, labeler) == [behind.id]
    session.refresh(far)
    assert far.checked_xid < 2**62


def test_a_claim_does_not_walk_over_what_was_judged(session: Session) -> None:
    """Three thousand that wait for other people are behind, and nothing is ahead: no search reads them."""
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    first = factories.comparison(session, project)
    ids = [first.id, *fill(session, first, 3000)]
    session.execute(
        text(
            "INSERT INTO judgment (comparison_id, labeler_id, rubric_id, preference, swapped)"
            " SELECT id, :labeler, rubric_id, 1, false FROM comparison WHERE id <> :last"
        ),
        {"labeler": labeler.id, "last": ids[-1]},
    )
    vacuum(session)
    assert given(session, project, labeler) == [ids[-1]]
    session.commit()
    with few_rows_read(session, fewer_than=100):
        assert assigning.next_task(session, project, labeler) is None
        assert outlook.idle(session, project, labeler).reason == "finished"
        assert outlook.project_with_work(session, labeler) is None
    urgent = factories.comparison(session, project, priority=1)
    session.commit()
    with few_rows_read(session, fewer_than=100):
        assert take(session, project, labeler).position.comparison_id == urgent.id


def test_a_large_import_ahead_of_a_labeler_is_not_looked_through(session: Session) -> None:
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    first = factories.comparison(session, project)
    assert given(session, project, labeler) == [first.id]
    session.commit()
    new = fill(session, first, 3000)
    vacuum(session)
    with few_rows_read(session, fewer_than=600):
        assert take(session, project, labeler).position.comparison_id == new[0]


def test_a_fresh_labelers_first_claim_reads_one_comparison(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    first = factories.comparison(session, project)
    fill(session, first, 3000)
    vacuum(session)
    with few_rows_read(session, fewer_than=100):
        assert take(session, project, labeler).position.comparison_id == first.id


def test_a_place_is_one_row_a_queue(session: Session) -> None:
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    experts = group(session, project, labeler)
    for n in range(4):
        factories.comparison(session, project, group_id=experts.id if n % 2 else None)
    assert len(given(session, project, labeler)) == 4
    places = session.execute(select(QueuePlace.group_id, QueuePlace.priority, QueuePlace.comparison_id)).all()
    assert sorted(places, key=str) == sorted([(None, None, None), (experts.id, None, None)], key=str)


# --- what was skipped, given up, or is not to be judged by them ------------------------------------------------------


def skip(session: Session, project: Project, labeler: User) -> int:
    task = take(session, project, labeler)
    leases.skip(session, project, task.lease_id, labeler, "too long")
    return task.position.comparison_id


def test_skipped_comparisons_come_back_last_the_oldest_first(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    ids = [factories.comparison(session, project).id for _ in range(4)]
    skipped = []
    for _ in range(2):
        skipped.append(skip(session, project, labeler))
        session.commit()  # leases of one transaction are given out at one moment
    assert skipped == ids[:2]
    urgent = factories.comparison(session, project, priority=1).id
    assert given(session, project, labeler) == [urgent, *ids[2:], *ids[:2]]


def test_skipping_again_and_again_goes_round(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    ids = [factories.comparison(session, project).id for _ in range(3)]
    seen = []
    for _ in range(6):
        seen.append(skip(session, project, labeler))
        session.commit()
    assert seen == ids + ids


def test_nobody_holds_more_than_two_tasks(session: Session) -> None:
    """Skipped tasks can be put on the desk again by their id, one after the other."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    for _ in range(8):
        factories.comparison(session, project)
    skipped = []
    for _ in range(6):
        task = take(session, project, labeler)
        leases.skip(session, project, task.lease_id, labeler, "unclear")
        skipped.append(task)
        session.commit()
    for task in skipped:
        again = take(session, project, labeler, again=task.lease_id)
        assert again.position == task.position
        assert len(leases.renew(session, project, labeler)) <= 2
        session.commit()
    assert take(session, project, factories.user(session)).position == skipped[1].position


def test_the_card_behind_the_desk_is_never_the_one_on_it(session: Session) -> None:
    """Also if the lease on the desk had expired, so that it would be the next one."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    for _ in range(2):
        factories.comparison(session, project)
    desk = take(session, project, labeler)
    run_out(session, desk.lease_id)
    end_overdue(session)
    ahead = take(session, project, labeler, beside=desk.lease_id)
    assert ahead.position != desk.position
    assert set(leases.renew(session, project, labeler)) == {desk.lease_id, ahead.lease_id}


def test_others_get_at_once_what_somebody_skipped(session: Session) -> None:
    project, labeler, other = factories.project(session, overlap=1), factories.user(session), factories.user(session)
    ids = [factories.comparison(session, project).id for _ in range(2)]
    skip(session, project, labeler)
    assert given(session, project, other) == ids


def test_a_recused_labeler_is_not_asked(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    recused, other = factories.comparison(session, project), factories.comparison(session, project)
    factories.lease(session, recused, labeler_id=labeler.id, state="recused")
    assert given(session, project, labeler) == [other.id]


@pytest.mark.parametrize("state", ["paused", "removed"])
def test_who_may_not_label_is_told_why(session: Session, state: str) -> None:
    project, labeler = factories.project(session), factories.user(session)
    factories.comparison(session, project)
    take(session, project, labeler)
    session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.id, state=state, reason="Ask Ada."))
    session.flush()
    assert assigning.next_task(session, project, labeler) is None
    idle = outlook.idle(session, project, labeler)
    assert (idle.reason, idle.message) == (state, "Ask Ada." if state == "paused" else "")
    assert outlook.project_with_work(session, labeler) is None
    elsewhere = factories.comparison(session)
    assert take(session, session.get_one(Project, elsewhere.project_id), labeler)


def test_what_is_left_counts_every_queue(session: Session) -> None:
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    experts = group(session, project, labeler)
    other = factories.user(session)
    for keys in ({}, {}, {"group_id": experts.id}, {"labeler_id": labeler.id}, {"labeler_id": other.id}):
        factories.comparison(session, project, **keys)
    for left in (4, 3, 2, 1):
        task = take(session, project, labeler)
        assert outlook.progress(session, project, labeler).left == left
        judge(session, project, labeler, task)
    assert assigning.next_task(session, project, labeler) is None
    assert session.scalar(select(func.count()).select_from(Lease).where(Lease.state == "live")) == 0
