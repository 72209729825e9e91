"""When a comparison has its judgments, and what the page says meanwhile."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.labeling import assigning, settling
from app.models import Comparison, Lease
from tests import factories
from tests.labeling.desk import judge, take

# --- settling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preferences", "threshold", "state", "agreement", "consensus"),
    [
        # Agreeing pairs over all pairs, by hand.
        ((2,), 0.6, "settled", None, 2.0),
        ((1, 3), 0.6, "settled", 1.0, 2.0),
        ((1, -1), 0.6, "in_review", 0.0, 0.0),
        ((0, 0), 0.6, "settled", 1.0, 0.0),
        ((0, 1), 0.6, "in_review", 0.0, 0.5),
        ((3, 2, -1), 0.6, "in_review", 1 / 3, 4 / 3),
        ((3, 2, -1), 0.3, "settled", 1 / 3, 4 / 3),
        ((1, 1, 1, 1, -1), 0.6, "settled", 6 / 10, 0.6),  # exactly at the threshold
        ((1, 1, 1, -1, 0), 0.6, "in_review", 3 / 10, 0.4),
    ],
)
def test_settling(
    session: Session,
    preferences: tuple[int, ...],
    threshold: float,
    state: str,
    agreement: float | None,
    consensus: float,
) -> None:
    project = factories.project(session, overlap=len(preferences), review_threshold=threshold)
    comparison = factories.comparison(session, project)
    for n, preference in enumerate(preferences):
        assert comparison.state == "open"
        labeler = factories.user(session)
        task = take(session, project, labeler)
        session.execute(update(Lease).where(Lease.id == task.lease_id).values(swapped=n % 2 == 1))
        judge(session, project, labeler, task, preference if n % 2 == 0 else -preference)
        session.refresh(comparison)
    assert comparison.state == state
    assert comparison.agreement == (None if agreement is None else pytest.approx(agreement))
    assert comparison.consensus == pytest.approx(consensus)
    assert (comparison.settled_at is None) == (state == "in_review")


def test_settling_many_at_once_leaves_the_unfinished_open(session: Session) -> None:
    project = factories.project(session, overlap=2)
    done = [factories.comparison(session, project) for _ in range(3)]
    unfinished = factories.comparison(session, project)
    not_asked_for = factories.comparison(session, project)
    for comparison in (*done, not_asked_for):
        factories.judgment(session, comparison, preference=1)
        factories.judgment(session, comparison, preference=2)
    replaced = factories.judgment(session, unfinished, preference=-3)
    session.execute(
        text("UPDATE judgment SET superseded_at = now(), superseded_for = 'undone' WHERE id = :id"), {"id": replaced.id}
    )
    factories.judgment(session, unfinished, preference=2, labeler_id=replaced.labeler_id)
    assert settling.settle(session, [c.id for c in (*done, unfinished)]) == 3
    states = dict(session.execute(select(Comparison.id, Comparison.state)).all())
    assert states == dict.fromkeys((c.id for c in done), "settled") | {unfinished.id: "open", not_asked_for.id: "open"}
    factories.judgment(session, unfinished, preference=3)
    assert settling.settle(session, [unfinished.id]) == 1
    consensus = select(Comparison.consensus).where(Comparison.id == unfinished.id)
    assert session.scalar(consensus) == 2.5  # the superseded -3 does not count
    assert settling.settle(session, []) == 0


# --- what the page says ----------------------------------------------------------------------------------------------


def test_progress_counts_what_this_labeler_did_and_may_still_do(session: Session) -> None:
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    comparisons = [factories.comparison(session, project) for _ in range(5)]
    for _ in range(2):
        judge(session, project, labeler, take(session, project, labeler))
    yesterday = {"created_at": datetime.now(UTC) - timedelta(days=1, minutes=1)}
    factories.judgment(session, comparisons[2], preference=1, labeler_id=labeler.id, **yesterday)
    factories.judgment(session, factories.comparison(session), preference=1, labeler_id=labeler.id)  # elsewhere, counts
    take(session, project, labeler)
    assert assigning.progress(session, project, labeler) == (3, 2)
    fresh = factories.user(session)
    progress = assigning.progress(session, project, fresh)
    assert (progress, progress.left_is_exact) == ((0, 5), True)


def test_why_there_is_nothing_to_do(session: Session) -> None:
    project = factories.project(session, overlap=2)
    labeler, other = factories.user(session), factories.user(session)

    def reason() -> str:
        assert assigning.next_task(session, project, labeler) is None
        return assigning.idle(session, project, labeler).reason

    assert reason() == "nothing"
    sampling = factories.run(session, project, "sample", state="running", progress_done=3, progress_total=10)
    assert assigning.idle(session, project, labeler)[:3] == ("sampling", 3, 10)
    sampling.state = "succeeded"
    session.flush()
    factories.comparison(session, project)
    judge(session, project, labeler, take(session, project, labeler))
    assert reason() == "judged"
    task = take(session, project, other)
    assert reason() == "taken"
    judge(session, project, other, task)
    assert reason() == "finished"
    factories.comparison(session, project)
    assert assigning.idle(session, project, labeler).reason == "busy"


def test_the_project_with_work(session: Session) -> None:
    labeler = factories.user(session)
    assert assigning.project_with_work(session, labeler) is None
    first, second = factories.project(session), factories.project(session)
    for project in (first, second, second):
        factories.comparison(session, project)
    assert assigning.project_with_work(session, labeler) == first.slug
    judge(session, second, labeler, take(session, second, labeler))
    assert assigning.project_with_work(session, labeler) == second.slug  # where they were
    take(session, first, labeler)
    assert assigning.project_with_work(session, labeler) == first.slug  # a card is on the desk
