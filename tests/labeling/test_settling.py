"""When a comparison has all its judgments, and what the page shows in the meantime."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.labeling import answers, assigning, outlook, settling
from app.models import Comparison, Lease, Project
from tests import factories
from tests.labeling.desk import answer, few_rows_read, fill, judge, rank, ranking, take, vacuum

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
    factories.judgment(session, factories.comparison(session), preference=1, labeler_id=labeler.id)  # elsewhere
    take(session, project, labeler)
    assert outlook.progress(session, project, labeler) == (2, 2, False)
    assert outlook.progress(session, project, factories.user(session)) == (0, 5, False)


def test_why_there_is_nothing_to_do(session: Session) -> None:
    project = factories.project(session, overlap=2)
    labeler, other = factories.user(session), factories.user(session)

    def reason() -> str:
        assert assigning.next_task(session, project, labeler) is None
        return outlook.idle(session, project, labeler).reason

    assert reason() == "nothing"
    sampling = factories.run(session, project, "sample", state="running", progress_done=3, progress_total=10)
    assert outlook.idle(session, project, labeler)[:3] == ("sampling", 3, 10)
    sampling.state = "succeeded"
    session.flush()
    factories.comparison(session, project)
    judge(session, project, labeler, take(session, project, labeler))
    assert reason() == "finished"  # whether it waits for others is not said
    task = take(session, project, other)
    assert reason() == "finished"
    judge(session, project, other, task)
    assert reason() == "finished"
    factories.comparison(session, project, overlap=1)
    task = take(session, project, other)
    assert reason() == "taken"
    judge(session, project, other, task)
    assert reason() == "finished"
    factories.comparison(session, project)
    assert outlook.idle(session, project, labeler).reason == "busy"


def test_the_project_with_work(session: Session) -> None:
    labeler = factories.user(session)
    assert outlook.project_with_work(session, labeler) is None
    first, second = factories.project(session), factories.project(session)
    for project in (first, second, second):
        factories.comparison(session, project)
    assert outlook.project_with_work(session, labeler) == first.slug
    judge(session, second, labeler, take(session, second, labeler))
    assert outlook.project_with_work(session, labeler) == second.slug  # where they were
    take(session, first, labeler)
    assert outlook.project_with_work(session, labeler) == first.slug  # a card is on the desk


# --- settling: who could not judge, adaptive overlap, rankings, flags ------------------------------------------------


def say(session: Session, project: Project, *preferences: int | str) -> list[int]:
    """Let new people answer, in canonical order; return the first comparison's overlap after each answer."""
    overlaps = []
    for preference in preferences:
        labeler = factories.user(session)
        task = take(session, project, labeler)
        said: int | str = preference
        if isinstance(preference, int):
            swapped = session.scalars(select(Lease.swapped).where(Lease.id == task.lease_id)).one()
            said = -preference if swapped else preference
        answers.submit(session, project, task.lease_id, labeler, answer(task, said))  # type: ignore[arg-type]
        overlaps.append(session.scalars(select(Comparison.overlap).order_by(Comparison.id)).first() or 0)
    return overlaps


NOT = "cannot_judge"


@pytest.mark.parametrize(
    ("overlap", "said", "overlaps", "state", "reason", "consensus"),
    [
        (1, [NOT, 2], [2, 2], "settled", None, 2.0),
        (1, [NOT, NOT, NOT], [2, 3, 3], "in_review", "unjudgeable", None),
        (2, [1, NOT, 2], [2, 3, 3], "settled", None, 1.5),
        (2, [NOT, NOT, 1, 2], [2, 4, 4, 4], "settled", None, 1.5),
        (2, [NOT, NOT, 1, NOT], [2, 4, 4, 4], "in_review", "unjudgeable", 1.0),
        (2, [NOT, 1, -1], [2, 3, 3], "in_review", "split", 0.0),
    ],
)
def test_who_could_not_judge_is_replaced(
    session: Session,
    overlap: int,
    said: list[int | str],
    overlaps: list[int],
    state: str,
    reason: str | None,
    consensus: float | None,
) -> None:
    project = factories.project(session, overlap=overlap)
    comparison = factories.comparison(session, project)
    assert say(session, project, *said) == overlaps
    session.refresh(comparison)
    assert (comparison.state, comparison.review_reason) == (state, reason)
    assert comparison.consensus == consensus
    assert comparison.judgment_count == len(said)


@pytest.mark.parametrize(
    ("said", "overlaps", "state", "p_b"),
    [
        # Most people prefer one side with probability 0.82 after one vote, 0.92 after two alike, 0.5 after a split.
        ([1, 1], [2, 2], "settled", 2.5 / 3),
        ([-1, -2], [2, 2], "settled", 0.5 / 3),
        ([1, -1, 1, 1, 1], [2, 3, 4, 5, 5], "settled", 4.5 / 6),
        ([1, -1, 1, -1, 1], [2, 3, 4, 5, 5], "in_review", 3.5 / 6),
        ([0, 0], [2, 2], "settled", 0.5),
        ([NOT, 1, 1], [2, 3, 3], "settled", 2.5 / 3),
        ([NOT, NOT, NOT, NOT, NOT], [2, 3, 4, 5, 5], "in_review", None),
    ],
)
def test_adaptive_overlap_asks_while_it_is_split(
    session: Session, said: list[int | str], overlaps: list[int], state: str, p_b: float | None
) -> None:
    adaptive = {"at_least": 1, "at_most": 5, "sure": 0.9}
    project = factories.project(session, overlap=2, labeling={"adaptive": adaptive}, review_threshold=0.5)
    comparison = factories.comparison(session, project, overlap=1, overlap_max=5)
    assert say(session, project, *said) == overlaps
    session.refresh(comparison)
    assert comparison.state == state
    assert comparison.p_b == (None if p_b is None else pytest.approx(p_b, abs=1e-6))
    assert comparison.judgment_count == len(said)


def test_where_labelers_are_weighed_their_posterior_decides_when_to_stop(session: Session) -> None:
    labeling = {"adaptive": {"at_least": 1, "at_most": 5, "sure": 0.9}, "consensus": "dawid_skene"}
    project = factories.project(session, labeling=labeling)
    comparison = factories.comparison(session, project, overlap=1, overlap_max=5)
    # A vote for a side counts log 4 before any fit: 4:1 after one, 16:1 after two.
    assert say(session, project, 1, 1) == [2, 2]
    session.refresh(comparison)
    assert comparison.state == "settled"
    assert comparison.p_b is not None
    assert comparison.p_b > 0.9


def test_a_flag_sends_an_agreed_comparison_to_review(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    factories.rubric(session, project, flags=[{"name": "harmful", "label": "Harmful"}])
    comparison = factories.comparison(session, project)
    task = take(session, project, labeler)
    answers.submit(session, project, task.lease_id, labeler, answer(task, 1, flags=["harmful"]))
    session.refresh(comparison)
    assert (comparison.state, comparison.review_reason, comparison.flagged) == ("in_review", "flagged", True)


def test_the_pairs_of_a_ranking_settle_together(session: Session) -> None:
    project = factories.project(session, overlap=2)
    pairs = ranking(session, project)
    rank(session, project, {"one": 1, "two": 2, "three": 3})
    assert {pair.state for pair in session.scalars(select(Comparison))} == {"open"}
    rank(session, project, {"one": 1, "two": 3, "three": 2})
    for pair in pairs:
        session.refresh(pair)
    assert [(pair.state, pair.agreement) for pair in pairs] == [("settled", 1.0), ("settled", 1.0), ("in_review", 0.0)]
    assert [pair.consensus for pair in pairs] == [-1.0, -1.0, 0.0]


def test_unranked_responses_leave_their_pair_undecided_and_nobody_is_asked_again(session: Session) -> None:
    project = factories.project(session, overlap=1)
    pairs = ranking(session, project)
    rank(session, project, {"one": 1, "two": "", "three": ""})
    for pair in pairs:
        session.refresh(pair)
    assert [(pair.state, pair.consensus, pair.review_reason) for pair in pairs] == [
        ("settled", -1.0, None),
        ("settled", -1.0, None),
        ("settled", None, None),
    ]


def test_a_ranking_asks_for_more_of_all_its_pairs_while_one_is_split(session: Session) -> None:
    project = factories.project(session, labeling={"adaptive": {"at_most": 3, "sure": 0.9}}, review_threshold=0)
    pairs = ranking(session, project, overlap=1, overlap_max=3)
    for order, overlap in (((1, 2, 3), 2), ((1, 3, 2), 3), ((1, 2, 3), 3)):
        rank(session, project, dict(zip(("one", "two", "three"), order, strict=True)))
        assert set(session.scalars(select(Comparison.overlap))) == {overlap}
    for pair in pairs:
        session.refresh(pair)
    assert {(pair.state, pair.judgment_count) for pair in pairs} == {("settled", 3)}


def test_settling_reads_no_more_than_its_own_rows(session: Session) -> None:
    project, labeler = factories.project(session, overlap=3), factories.user(session)
    first = factories.comparison(session, project)
    fill(session, first, 3000)
    vacuum(session)
    task = take(session, project, labeler)
    session.commit()
    with few_rows_read(session, fewer_than=100):
        judge(session, project, labeler, task)


SAID = ((1, 1), (1, -1), (3, 2, -1), (1, 1, 1, 1, -1), (1, 1, 1, -1, 0), (2,), (0, 0))


@pytest.mark.parametrize(("before", "after"), [(0.6, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, 0.0)])
def test_another_threshold_gives_the_states_it_would_have_given(session: Session, before: float, after: float) -> None:
    found = {}
    for name, threshold in (("changed", before), ("afresh", after)):
        project = factories.project(session, review_threshold=threshold)
        for preferences in SAID:
            for flags in ([], ["harmful"]):
                row = factories.comparison(session, project, overlap=len(preferences), flagged=bool(flags))
                for preference in preferences:
                    factories.judgment(session, row, preference=preference, flags=flags)
                settling.settle(session, [row.id])
        # What somebody put up or decided is theirs.
        for values in ({"state": "adjudicated"}, {"state": "in_review", "review_reason": "requested"}):
            factories.comparison(session, project, agreement=0.5, **values)
        states = (Comparison.state, Comparison.review_reason, Comparison.settled_at.is_(None))
        states_of = select(*states).where(Comparison.project_id == project.id).order_by(Comparison.id)
        if name == "changed":
            old = session.execute(states_of).all()
            told = settling.moves(session, project, after)
            assert settling.use_threshold(session, project, after) == told
            new = session.execute(states_of).all()
            moved = [(a.state, b.state) for a, b in zip(old, new, strict=True)]
            assert told == (moved.count(("in_review", "settled")), moved.count(("settled", "in_review")))
            assert any(told)
            assert settling.moves(session, project, after) == (0, 0)
        found[name] = session.execute(states_of).all()
    assert found["changed"] == found["afresh"]
